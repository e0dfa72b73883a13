"""Tokenizers of model directories: trained, read, written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fashionbert_fast.errors import InputError
from fashionbert_fast.files import check_file, read_json, written_whole

SPECIAL_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
                  "mask_token": "[MASK]"}  # fmt: skip

FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
         "chat_template.jinja")  # fmt: skip


def train_wordpiece(titles: Sequence[str], vocab_size: int, directory: Path) -> None:
    """Train BERT's lower-casing WordPiece on ``titles`` and write tokenizer files to ``directory``.

    Deterministic: the same titles give the same vocabulary. Pieces seen once are not kept.
    """
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast  # pyright: ignore[reportAttributeAccessIssue]  # an alias made at run time

    trainer = BertWordPieceTokenizer(lowercase=True)
    characters = {c for title in titles for c in (trainer.normalize(title) or "") if not c.isspace()}
    # The library numbers `##x` in the order of a hash map, which its merges then break ties by: number them beforehand.
    first = [*SPECIAL_TOKENS.values(), *sorted(characters), *(f"##{c}" for c in sorted(characters))]
    trainer.train_from_iterator(
        titles, vocab_size=max(vocab_size, len(first)), min_frequency=2, special_tokens=first, show_progress=False
    )
    vocabulary = trainer.get_vocab()
    with written_whole(directory) as folder:
        (folder / "vocab.txt").write_text(
            "".join(f"{token}\n" for token in sorted(vocabulary, key=vocabulary.__getitem__))
        )
        BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=True).save_pretrained(folder)


def load_tokenizer(directory: Path):
    """The fast tokenizer (a `transformers` one) of a model directory.

    Raises:
        InputError: no tokenizer is there, it cannot be read, or its vocabulary lacks a token that training needs.
    """
    from transformers import (
        BertTokenizerFast,  # pyright: ignore[reportAttributeAccessIssue]  # an alias made at run time
        PreTrainedTokenizerFast,
    )

    directory = Path(directory)
    _check_files(directory)
    described = read_json(directory / "tokenizer.json") if (directory / "tokenizer.json").exists() else None
    if described is None and not (directory / "vocab.txt").exists():
        raise InputError(f"{directory}: no tokenizer.json or vocab.txt; give a checkpoint with its tokenizer files")
    needed = ["mask_token", "pad_token", "cls_token", "sep_token"]
    try:
        # Not AutoTokenizer: it looks at config.json, which in our own model directories is no transformers model's.
        if described is None or _is_bert_vocabulary(described):
            needed.append("unk_token")  # others spell unknown words by bytes
            tokenizer = BertTokenizerFast.from_pretrained(directory, **_unsaid_settings(directory, described))
        else:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    except Exception as error:  # transformers and tokenizers raise many, bare ones among them
        raise InputError(
            f"{directory}: its tokenizer cannot be read ({' '.join(str(error).split())[:150]}); fetch it again"
        ) from error
    written = _written_tokens(directory, described)
    for name in needed:
        token = getattr(tokenizer, name)
        if token is None:
            raise InputError(f"{directory}: names no {name}; set it in tokenizer_config.json or give a BERT checkpoint")
        if token not in written:
            raise InputError(f"{directory}: its vocabulary has no {token} ({name}); give a BERT checkpoint's own files")
    return tokenizer


def _check_files(directory: Path) -> None:
    """InputError where a file is none that should be read, or names another one as the vocabulary: transformers would
    take it from anywhere, and the next export would give it away."""
    for name in FILES:
        if (directory / name).exists():
            check_file(directory / name, "fetch it again")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        settings = read_json(directory / name) if (directory / name).exists() else {}
        for field in settings:
            is_token = field.endswith(("_token", "_tokens"))
            if field in ("vocab", "merges") or (name.startswith("special") and not is_token):
                raise InputError(f"{directory / name}: has a field {field:.80}, which is no setting; "
                                 "take it out")  # fmt: skip


def copy_tokenizer(source: Path, target: Path) -> None:
    """Write the tokenizer of ``source`` to ``target``, so that a model directory is complete by itself.

    Written by transformers, not copied: every setting and special token is then spelled out in tokenizer_config.json,
    and `AutoTokenizer` splits as `load_tokenizer` does, which also reads what only tokenizer.json says.
    """
    with written_whole(target) as folder:
        load_tokenizer(source).save_pretrained(folder)
        if (source / "vocab.txt").exists():
            (folder / "vocab.txt").write_bytes((source / "vocab.txt").read_bytes())


def _is_bert_vocabulary(described: dict) -> bool:
    model, normalizer = described.get("model") or {}, described.get("normalizer") or {}
    return model.get("type") == "WordPiece" and normalizer.get("type") == "BertNormalizer"


def _unsaid_settings(directory: Path, described: dict | None) -> dict:
    """What tokenizer.json says of case and accents and tokenizer_config.json does not: `BertTokenizerFast` reads the
    latter alone, and would lower-case a cased vocabulary."""
    path = directory / "tokenizer_config.json"
    said = read_json(path) if path.exists() else {}
    normalizer = (described or {}).get("normalizer", {})
    names = {"do_lower_case": "lowercase", "strip_accents": "strip_accents",
             "tokenize_chinese_chars": "handle_chinese_chars"}  # fmt: skip
    return {
        ours: normalizer[theirs] for ours, theirs in names.items() if said.get(ours) is None and theirs in normalizer
    }


def _written_tokens(directory: Path, described: dict | None) -> set[str]:
    """The tokens that the directory's files have; a tokenizer adds what it misses, after the last of them."""
    if described is None:
        return set((directory / "vocab.txt").read_text(encoding="utf-8").splitlines())
    vocabulary = described["model"]["vocab"]
    words = (word if isinstance(word, str) else word[0] for word in vocabulary)  # Unigram: (word, score)
    return {*words, *(added["content"] for added in described.get("added_tokens", []))}
