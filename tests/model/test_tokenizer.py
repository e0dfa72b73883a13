"""Tokenizers: BERT vocabularies read as BERT's, whatever their directory spells out, and written so that others do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bert_directory import tokenizer_files
from transformers import AutoTokenizer, BertTokenizerFast, PreTrainedTokenizerFast

from fashionbert_fast.data.titles import TokenizedTitles
from fashionbert_fast.data.tokenizer import copy_tokenizer, load_tokenizer, train_wordpiece
from fashionbert_fast.errors import InputError
from fashionbert_fast.model.directories import resolve_core

TITLES = ["Café Red Shirt for Men’s 100% naïve", "nike AIR Max 日本 90 (2023)", "", "unbelievablenesslessly plain tee",
          "Women White Sneakers ☃ - size 38.5"]  # fmt: skip
SPECIAL = ("mask_token", "pad_token", "cls_token", "sep_token")


def _ids(tokenizer, titles=TITLES) -> list[list[int]]:
    return tokenizer(titles, truncation=True, max_length=64)["input_ids"]


def _change_json(directory: Path, change) -> None:
    described = json.loads((directory / "tokenizer.json").read_text())
    change(described)
    (directory / "tokenizer.json").write_text(json.dumps(described))


def test_the_layout_of_bert_base_uncased_has_its_special_tokens(tmp_path):
    tokenizer = load_tokenizer(tokenizer_files(tmp_path))
    assert [getattr(tokenizer, name) for name in SPECIAL] == ["[MASK]", "[PAD]", "[CLS]", "[SEP]"]
    titles = TokenizedTitles(TITLES, tokenizer, 16)
    assert (titles.mask_id, titles.pad_id, titles.vocabulary) == (103, 0, 30522)
    assert titles.title(0)[0].tolist()[:4] == [101, 7668, 2417, 3797]  # [CLS] cafe red shirt


def _minilm(directory: Path) -> Path:
    return resolve_core("all-minilm-l6-v2")


def _trained(directory: Path) -> Path:
    train_wordpiece(TITLES * 3, 300, directory)
    return directory


@pytest.mark.parametrize("make", [_minilm, _trained])
def test_directories_of_ours_are_split_as_before(tmp_path, make):
    """`PreTrainedTokenizerFast` is how they were read when their models were trained."""
    directory = make(tmp_path)
    before = _ids(PreTrainedTokenizerFast.from_pretrained(directory))
    assert _ids(load_tokenizer(directory)) == before
    assert len({tuple(ids) for ids in before}) == len(TITLES)


def _cased_by_config(directory: Path) -> Path:
    return tokenizer_files(directory, do_lower_case=False, model_max_length=512)


def _cased_by_json(directory: Path) -> Path:
    tokenizer_files(directory, model_max_length=512)
    _change_json(directory, lambda described: described["normalizer"].update(lowercase=False))
    return directory


def _cased_without_json(directory: Path) -> Path:
    (tokenizer_files(directory, do_lower_case=False) / "tokenizer.json").unlink()
    return directory


@pytest.mark.parametrize("make", [_cased_by_config, _cased_by_json, _cased_without_json])
def test_a_cased_vocabulary_stays_cased(tmp_path, make):
    tokenizer = load_tokenizer(make(tmp_path))
    assert tokenizer.tokenize("red RED") == ["red", "[UNK]"]  # this vocabulary has no capitals


def test_accents_are_kept_where_only_the_tokenizer_file_says_so(tmp_path):
    tokenizer_files(tmp_path)
    _change_json(tmp_path, lambda described: described["normalizer"].update(strip_accents=False))
    assert load_tokenizer(tmp_path).tokenize("naïve") != ["naive"]


@pytest.mark.parametrize("make", [tokenizer_files, _cased_by_config, _cased_by_json, _cased_without_json, _trained])
def test_copies_are_read_alike_by_transformers(tmp_path, make):
    source = make(tmp_path / "source")
    target = tmp_path / "target"
    target.mkdir()
    copy_tokenizer(source, target)
    (target / "config.json").write_text('{"model_type": "bert"}')
    expected = _ids(load_tokenizer(source))
    for theirs in (AutoTokenizer, BertTokenizerFast):
        tokenizer = theirs.from_pretrained(target)
        assert _ids(tokenizer) == expected
        assert [getattr(tokenizer, name) for name in SPECIAL] == ["[MASK]", "[PAD]", "[CLS]", "[SEP]"]
    assert _ids(load_tokenizer(target)) == expected


@pytest.mark.parametrize("token", ["[MASK]", "[PAD]", "[CLS]", "[SEP]", "[UNK]"])
@pytest.mark.parametrize("file", ["vocab.txt", "tokenizer.json"])
def test_what_lacks_a_special_token_is_named(tmp_path, token, file):
    tokenizer_files(tmp_path)
    if file == "vocab.txt":
        (tmp_path / "tokenizer.json").unlink()
        words = (tmp_path / file).read_text().splitlines()
        (tmp_path / file).write_text("".join(f"{word}\n" for word in words if word != token))
    else:
        _change_json(tmp_path, lambda described: described["model"]["vocab"].pop(token))
        _change_json(
            tmp_path,
            lambda described: described.update(
                added_tokens=[added for added in described["added_tokens"] if added["content"] != token]
            ),
        )
    with pytest.raises(InputError) as caught:
        load_tokenizer(tmp_path)
    message = str(caught.value)
    assert str(tmp_path) in message and token in message and "\n" not in message


def test_a_tokenizer_of_another_kind_must_name_its_special_tokens(tmp_path):
    """Nobody guesses that a byte-pair vocabulary calls its mask `[MASK]`."""
    tokenizer_files(tmp_path)
    merges = {"type": "BPE", "vocab": {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[MASK]": 3, "r": 4, "e": 5, "re": 6},
              "merges": ["r e"]}  # fmt: skip
    _change_json(tmp_path, lambda described: described.update(model=merges, added_tokens=[], post_processor=None))
    with pytest.raises(InputError, match=r"names no mask_token"):
        load_tokenizer(tmp_path)
    named = dict(zip(SPECIAL, ("[MASK]", "[PAD]", "[CLS]", "[SEP]"), strict=True))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    assert load_tokenizer(tmp_path)(["re"], add_special_tokens=False)["input_ids"] == [[6]]


@pytest.mark.parametrize("write", [_trained, lambda directory: copy_tokenizer(_minilm(directory), directory)])
def test_an_interrupted_writer_leaves_no_half_tokenizer(tmp_path, write, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(BertTokenizerFast, "save_pretrained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "tokenizer")
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_tokenizer(tmp_path):
    with pytest.raises(InputError, match=r"no tokenizer.json or vocab.txt"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "WordPiece"}}')
    with pytest.raises(InputError, match=str(tmp_path)):
        load_tokenizer(tmp_path)
