"""A WordPiece vocabulary from a catalogue's own titles, for a core trained from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

SPECIAL_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
                  "mask_token": "[MASK]"}  # fmt: skip


def train_wordpiece(titles: Sequence[str], vocab_size: int, directory: Path) -> None:
    """Train BERT's lower-casing WordPiece on ``titles`` and write tokenizer files to ``directory``.

    Deterministic: the same titles give the same vocabulary. Pieces seen once are not kept.
    """
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    trainer = BertWordPieceTokenizer(lowercase=True)
    characters = {c for title in titles for c in (trainer.normalize(title) or "") if not c.isspace()}
    # The library numbers `##x` in the order of a hash map, which its merges then break ties by: number them beforehand.
    first = [*SPECIAL_TOKENS.values(), *sorted(characters), *(f"##{c}" for c in sorted(characters))]
    trainer.train_from_iterator(
        titles, vocab_size=max(vocab_size, len(first)), min_frequency=2, special_tokens=first, show_progress=False
    )
    vocabulary = trainer.get_vocab()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vocab.txt").write_text(
        "".join(f"{token}\n" for token in sorted(vocabulary, key=vocabulary.__getitem__))
    )
    BertTokenizerFast(vocab=str(directory / "vocab.txt"), do_lower_case=True).save_pretrained(directory)
