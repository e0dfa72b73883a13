"""Model directories and tokenizers of strangers: a line each, before anything of the sizes that they claim is made.

What they cost in memory and seconds is measured by `tests/reliability/hostile.py`.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import no_files
import pytest
import torch
from bert_directory import TINY, bert_directory
from safetensors.torch import load_file, save_file

from fashionbert_fast import FashionBertConfig, FashionBertForPreTraining
from fashionbert_fast.data.tokenizer import load_tokenizer
from fashionbert_fast.errors import InputError
from fashionbert_fast.model import tensors

SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
         "max_position_embeddings")  # fmt: skip
NO_SIZES = [-1, 0, 2.5, 2e9, float("nan"), float("inf"), 2_000_000_000, 10**30, "2", None, True, [1], {"a": 1}]


@pytest.fixture
def bert(tmp_path) -> Path:
    return bert_directory(tmp_path / "bert", vocab_size=60, **TINY)


@pytest.fixture
def ours(tmp_path) -> Path:
    config = FashionBertConfig(vocab_size=60, patches=4, patch_feature_size=3, **TINY)
    FashionBertForPreTraining(config).save_pretrained(tmp_path / "ours")
    return tmp_path / "ours"


def _change(path: Path, **fields) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def _is_refused(read: Callable, directory: Path, *said: str) -> None:
    with pytest.raises(InputError) as raised:
        read(directory)
    message = str(raised.value)
    assert str(directory) in message and "\n" not in message and len(message) < 500
    assert all(words in message for words in said), message


@pytest.mark.parametrize("name", SIZES)
def test_sizes_that_are_none(bert, ours, name):
    for value in NO_SIZES:
        _change(bert / "config.json", **{name: value})
        _is_refused(FashionBertForPreTraining.from_bert, bert, "config.json", name)
        _change(ours / "config.json", **{name: value})
        _is_refused(FashionBertForPreTraining.from_pretrained, ours, "config.json", name)


@pytest.mark.parametrize("name", [name for name in SIZES if name != "num_attention_heads"])
@pytest.mark.parametrize("times", [2, 400])
def test_sizes_that_the_weights_have_not(bert, ours, name, times, monkeypatch):
    """Refused by the header: no model is built, and no tensor is read."""

    def built(*_):
        raise AssertionError("a model of these sizes was built")

    size = json.loads((bert / "config.json").read_text())[name] * times
    monkeypatch.setattr(torch.nn.Module, "__init__", built)
    monkeypatch.setattr(tensors, "load_file", built)
    _change(bert / "config.json", **{name: size})
    _is_refused(FashionBertForPreTraining.from_bert, bert, "which its config.json asks for" if "layers" in name
                else "config.json asks for a")  # fmt: skip
    _change(ours / "config.json", **{name: size})
    _is_refused(FashionBertForPreTraining.from_pretrained, ours, "config.json asks for")


def test_weights_of_no_blocks_that_the_machine_has_no_room_for(ours, monkeypatch):
    """A file may be as long as it says and take no room on the disk."""
    monkeypatch.setattr(tensors, "machine_memory", lambda: 10_000)
    _is_refused(FashionBertForPreTraining.from_pretrained, ours, "weights take 0.0 GB, this machine has 0.0 GB")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    _is_refused(FashionBertForPreTraining.from_pretrained, ours, "in each of 3 processes")


@pytest.mark.parametrize("field", [{"initializer_range": float("nan")}, {"layer_norm_eps": float("inf")},
                                   {"layer_norm_eps": "small"}, {"hidden_dropout_prob": float("nan")},
                                   {"pad_token_id": 60}, {"pad_token_id": -1}, {"hidden_act": "x" * 10**6},
                                   {"type_vocab_size": "2"}])  # fmt: skip
def test_other_fields_that_cannot_be(bert, field):
    _change(bert / "config.json", **field)
    _is_refused(FashionBertForPreTraining.from_bert, bert, "config.json")


@pytest.mark.parametrize("weighting", [3, "loss", [], {"alpha": float("nan")}, {"preference": [float("nan"), 1, 1]},
                                       {"preference": [1e308, 1e308, 1]}, {"preference": "abc"},
                                       {"floor": "0"}])  # fmt: skip
def test_a_weighting_that_cannot_be(ours, weighting):
    _change(ours / "config.json", weighting=weighting)
    _is_refused(FashionBertForPreTraining.from_pretrained, ours)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", 3, None,
                                  "config.json", "x" * 10**5, "nowhere.safetensors"])  # fmt: skip
def test_an_index_names_files_beside_it_alone(bert, name):
    (bert / "model.safetensors").rename(bert.parent / "outside.safetensors")
    (bert / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    _is_refused(FashionBertForPreTraining.from_bert, bert)


def test_the_links_of_a_hubs_cache_are_followed(bert):
    (bert / "model.safetensors").rename(bert.parent / "blob")
    (bert / "model-00001.safetensors").symlink_to("../blob")
    names = dict.fromkeys(load_file(bert.parent / "blob"), "model-00001.safetensors")
    (bert / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert FashionBertForPreTraining.from_bert(bert).config.hidden_size == 32


def _header(length: int, content: bytes = b"{}") -> bytes:
    return struct.pack("<Q", length) + content


def _tensor(shape: list[int], offsets: list[int]) -> bytes:
    header = json.dumps({"text_embeddings.word.weight": {"dtype": "F32", "shape": shape, "data_offsets": offsets}})
    return _header(len(header), header.encode()) + b"\0" * 64


HEADERS = {
    "empty": b"", "of 2 to the 63": _header(2**63 - 1), "of 100 MB": _header(10**8, b"{" + b" " * 10**6),
    "nested": _header(10**5, b"[" * 10**5), "no JSON": _header(4, b"\xff\xfe\xfd\xfc"), "beyond the file":
    _tensor([4, 8], [0, 10**9]), "negative": _tensor([-4, 8], [0, 64]), "overflows": _tensor([2**40, 2**40], [0, 64]),
    "of another size": _tensor([400, 800], [0, 64]), "a pickle": b"\x80\x04\x95" + b"x" * 100,
}  # fmt: skip


@pytest.mark.parametrize("kind", [*HEADERS, *no_files.KINDS])
def test_headers_that_lie(ours, kind):
    path = ours / "model.safetensors"
    path.unlink()
    if kind in HEADERS:
        path.write_bytes(HEADERS[kind])
    else:
        no_files.make(path, kind)
    _is_refused(FashionBertForPreTraining.from_pretrained, ours, "model.safetensors")


def test_weights_that_are_no_numbers_with_a_point(ours):
    state = load_file(ours / "model.safetensors")
    save_file({name: tensor.to(torch.int8) for name, tensor in state.items()}, ours / "model.safetensors")
    _is_refused(FashionBertForPreTraining.from_pretrained, ours, "has no tensor")


FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json")
TEXTS = {
    "garbage": bytes(range(256)) * 100, "nested": b"[" * 10**6, "deep": b'{"a":' * 10**5, "a list": b"[]",
    "no UTF-8": b'{"a": "\xff\xfe"}', "empty": b"",
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", [*TEXTS, "huge", *no_files.KINDS])
def test_files_of_a_tokenizer(bert, name, kind):
    if name == "vocab.txt":
        (bert / "tokenizer.json").unlink()
    path = bert / name
    path.unlink()
    if kind in TEXTS:
        path.write_bytes(TEXTS[kind])
    elif kind == "huge":
        path.touch()
        os.truncate(path, 2**33)
    else:
        no_files.make(path, kind)
    _is_refused(load_tokenizer, bert)


NAMES = ("vocab", "vocab_file", "merges", "merges_file", "tokenizer_file", "added_tokens_file", "tokenizer_object",
         "special_tokens_map_file", "chat_template_file", "init_inputs", "name_or_path")  # fmt: skip


@pytest.mark.parametrize("settings", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("there", ["vocab.txt", "tokenizer.json", "both"])
@pytest.mark.parametrize("name", NAMES)
def test_a_tokenizer_reads_no_file_that_its_settings_name(bert, tmp_path, name, there, settings):
    """It would become the vocabulary, and go out with the next export."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "password"]
    secrets = [tmp_path / "secret.txt", tmp_path / "secret.json"]
    secrets[0].write_text("".join(f"{word}\n" for word in words))
    described = json.loads((bert / "tokenizer.json").read_text())
    described["model"]["vocab"] = {word: number for number, word in enumerate(words)}
    secrets[1].write_text(json.dumps(described))
    for absent in {"vocab.txt", "tokenizer.json"} - {there} if there != "both" else ():
        (bert / absent).unlink()
    for secret in secrets:
        (bert / settings).write_text(json.dumps({name: [str(secret)] if name == "init_inputs" else str(secret)}))
        try:
            vocabulary = load_tokenizer(bert).get_vocab()
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert len(vocabulary) > 30_000
