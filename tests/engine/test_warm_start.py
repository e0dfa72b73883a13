"""`model.core` takes our own runs: every weight and the tokenizer go on, rates and weighting are the new run's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from bert_directory import TINY, bert_directory
from conftest import TINY_MODEL, write_store
from in_process import run_here
from safetensors.torch import load_file

from fashionbert_fast import FashionBertForPreTraining, FashionBertForQueries
from fashionbert_fast.config import load_config
from fashionbert_fast.engine.build import build_model, find_tokenizer
from fashionbert_fast.engine.reporting.metrics import read_metrics
from fashionbert_fast.errors import InputError
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.files import SEAL, seal
from fashionbert_fast.run_directory import MANIFEST, resolve_model_dir


@pytest.fixture(scope="module")
def first(store_path, tmp_path_factory):
    """A run that kept its best checkpoint."""
    options = ["validation.keep_best=mlm", "validation.every=4", "train.lr=1e-2"]
    return run_here(store_path, tmp_path_factory.mktemp("runs") / "first", *options)


def _built(core, store: Path, *overrides: str) -> FashionBertForPreTraining:
    config = load_config(None, [f"data.store={store}", "train.output=unused", f"model.core={core}", *overrides])
    return build_model(config, FeatureStore.open(store), 1)


@pytest.mark.parametrize("part", ["", "checkpoints/step-00000008", "checkpoints/best", "checkpoints/best/model"])
def test_every_weight_is_taken(first, store_path, part):
    model = _built(first / part, store_path)
    saved = load_file(resolve_model_dir(first / part) / "model.safetensors")
    state = model.state_dict()
    assert state.keys() == saved.keys()
    assert all(torch.equal(state[name], saved[name]) for name in saved)
    assert model.training and all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())


def test_a_run_of_two_segments_goes_on_with_queries_without_loss(first, asked_path, tmp_path):
    """The segment of queries begins as that of titles; three segments are read by whoever reads two."""
    saved = load_file(resolve_model_dir(first) / "model.safetensors")
    for model in (_built(first, asked_path, "queries.weight=1"), FashionBertForQueries.from_pretrained(first)):
        state = model.state_dict()
        segments = state.pop("text_embeddings.segment.weight")
        assert torch.equal(segments[:2], saved["text_embeddings.segment.weight"])
        assert torch.equal(segments[2], segments[0]) and len(segments) == 3
        assert {"text_embeddings.segment.weight", *state} == saved.keys()
        assert all(torch.equal(state[name], saved[name]) for name in state)
    model.save_pretrained(tmp_path / "three")
    two, three = (FashionBertForPreTraining.from_pretrained(path) for path in (first, tmp_path / "three"))
    assert (two.query_segment, three.query_segment, three.config.type_vocab_size) == (0, 2, 3)
    pair = torch.tensor([[2, 17, 3]]), torch.ones(1, 3, dtype=torch.int64), torch.rand(1, 4, 24)
    assert torch.equal(two.score(*pair), three.score(*pair))
    again = _built(tmp_path / "three", asked_path, "queries.weight=1").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_a_berts_segment_of_queries_is_its_sentence_a(tmp_path):
    core = bert_directory(tmp_path / "core", **TINY)
    segments = FashionBertForQueries.from_bert(core, 24, patches=4).text_embeddings.segment.weight
    theirs = load_file(core / "model.safetensors")["bert.embeddings.token_type_embeddings.weight"]
    assert torch.equal(segments, theirs[[0, 1, 0]])


def test_sizes_are_the_checkpoints_and_rates_the_configurations(first, store_path):
    model = _built(
        first, store_path, "model.hidden_dropout=0.2", "model.attention_dropout=0.3", "model.patch_dropout=0.4",
        "weighting.method=min_norm", "weighting.preference=[1,2,3]", "model.hidden_size=999",
    )  # fmt: skip
    saved = json.loads((resolve_model_dir(first) / "config.json").read_text())
    c = model.config
    assert (c.hidden_dropout_prob, c.attention_probs_dropout_prob, c.patch_dropout_prob) == (0.2, 0.3, 0.4)
    assert (c.weighting.method, c.weighting.preference) == ("min_norm", [1.0, 2.0, 3.0])
    assert (c.hidden_size, c.vocab_size, c.num_hidden_layers) == (32, saved["vocab_size"], 2)
    assert model.weighter.weighting == c.weighting and model.tia_head.dropout.p == 0.2


@pytest.mark.parametrize("sizes", [["model.layers=1000", "model.hidden_size=1048576", "model.heads=1"],
                                   ["model.intermediate_size=16777216", "model.layers=1000"]])  # fmt: skip
def test_a_core_that_the_machine_has_no_room_for_is_not_begun(store_path, sizes):
    config = load_config(None, [f"data.store={store_path}", "train.output=unused", *sizes])
    with pytest.raises(InputError, match=r"^model: [\d,]+ weights take .* GB, this machine has .* GB; lower model"):
        build_model(config, FeatureStore.open(store_path), 300)


def test_fewer_layers_are_the_first_ones(first, store_path):
    model, whole = _built(first, store_path, "model.layers=1"), _built(first, store_path)
    assert len(model.encoder.layers) == model.config.num_hidden_layers == 1
    assert torch.equal(model.encoder.layers[0].qkv.weight, whole.encoder.layers[0].qkv.weight)
    assert torch.equal(model.mpm_head.projection.weight, whole.mpm_head.projection.weight)
    with pytest.raises(InputError, match=r"model\.layers 3: .* has 2"):
        _built(first, store_path, "model.layers=3")


def test_a_half_precision_directory_is_trained_in_full(first, store_path, tmp_path):
    FashionBertForPreTraining.from_pretrained(resolve_model_dir(first)).to(torch.bfloat16).save_pretrained(tmp_path)
    assert {p.dtype for p in _built(tmp_path, store_path).parameters()} == {torch.float32}


def test_the_tokenizer_is_the_checkpoints(first, store_path, tmp_path):
    config = load_config(None, [f"data.store={store_path}", f"train.output={tmp_path}", f"model.core={first}"])
    found = find_tokenizer(config, FeatureStore.open(store_path), tmp_path)
    assert (found / "vocab.txt").read_bytes() == (first / "tokenizer" / "vocab.txt").read_bytes()
    assert not (tmp_path / "tokenizer").exists()  # none was trained


def test_a_tokenizer_of_more_tokens_than_the_embedding_is_refused(first, store_path):
    config = load_config(None, [f"data.store={store_path}", "train.output=unused", f"model.core={first}"])
    rows = FashionBertForPreTraining.from_pretrained(resolve_model_dir(first)).config.vocab_size
    build_model(config, FeatureStore.open(store_path), rows)
    with pytest.raises(InputError, match=f"its tokenizer has {rows + 1} tokens, its word embedding {rows} rows"):
        build_model(config, FeatureStore.open(store_path), rows + 1)


def test_other_patch_features_are_refused(first, tmp_path):
    other = write_store(tmp_path / "other", feature_size=16)
    with pytest.raises(InputError, match=r"patch features differ in .*feature_size.*prepare the catalogue again"):
        _built(first, other)
    anonymous = tmp_path / "anonymous"  # saved from Python, without a manifest of its features
    shutil.copytree(resolve_model_dir(first), anonymous)
    (anonymous / "patch_features.json").unlink()
    with pytest.raises(InputError, match=r"knows 4 patches of 24 numbers, .* 4 of 16"):
        _built(anonymous, other)


def test_what_is_no_model_is_named(tmp_path, store_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match="no complete checkpoint"):
        _built(tmp_path, store_path)


def test_the_remedy_for_another_global_batch_works_as_printed(first, store_path, tmp_path):
    """The new run begins where the old one was: its held-out losses at no learning rate are those it ended with."""
    moved = tmp_path / "of two"
    shutil.copytree(first, moved)
    for manifest in moved.glob(f"checkpoints/*/{MANIFEST}"):
        fields = json.loads(manifest.read_text()) | {"world_size": 2}
        manifest.write_text(json.dumps(seal({name: value for name, value in fields.items() if name != SEAL})))
    options = ["validation.keep_best=mlm", "validation.every=4", "train.lr=1e-2"]
    with pytest.raises(InputError, match="a step takes 8 pairs on 1 processes, the run began on 2 with 16") as caught:
        run_here(store_path, moved, *options, resume=True)
    core = str(caught.value).split("model.core=")[1].split(" and another train.output")[0]
    fields = [field for field in TINY_MODEL if "dropout" in field]
    run = run_here(store_path, tmp_path / "new", f"model.core={core}", *fields, "train.lr=1e-9", "train.steps=1")
    new, old = read_metrics(run)[-1]["validation"], read_metrics(first)[-1]["validation"]
    assert new["losses"] == pytest.approx(old["losses"], rel=1e-5)
    assert new["losses"]["mlm"] < read_metrics(first)[0]["validation"]["losses"]["mlm"] - 0.01
