"""A WordPiece trained on titles: letters' case does not count, and the same titles give the same vocabulary."""

from __future__ import annotations

from fashionbert_fast.data.tokenizer import load_tokenizer, train_wordpiece

TITLES = ["Red Shirt", "red SHIRT of Cotton", "blue Cotton shirt", "BLUE jeans"] * 3


def test_upper_and_lower_case_are_one(tmp_path):
    train_wordpiece(TITLES, 200, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer(["RED Shirt", "red shirt"])["input_ids"]
    assert ids[0] == ids[1]
    assert tokenizer.unk_token_id not in ids[0]
    assert tokenizer.convert_ids_to_tokens(ids[0]) == ["[CLS]", "red", "shirt", "[SEP]"]
    vocabulary = (tmp_path / "vocab.txt").read_text().split()
    assert vocabulary[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert all(piece == piece.lower() for piece in vocabulary[5:])


def test_the_same_titles_give_the_same_vocabulary(tmp_path):
    for name in ("one", "two"):
        train_wordpiece(TITLES, 60, tmp_path / name)
    assert (tmp_path / "one" / "vocab.txt").read_bytes() == (tmp_path / "two" / "vocab.txt").read_bytes()
