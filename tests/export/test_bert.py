"""One directory, read by transformers as a BERT and by us as the whole model."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertForMaskedLM, BertModel

from fashionbert_fast import FashionBertForPreTraining, FashionBertProcessor
from fashionbert_fast.cli import main
from fashionbert_fast.errors import InputError
from fashionbert_fast.evaluation.run import load_scorer
from fashionbert_fast.export import bert
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.model.directories import is_own_model
from fashionbert_fast.run_directory import resolve_model_dir

TITLES = ["red shirt", "a green long summer dress of nobody", "boots"]


@pytest.fixture(scope="module")
def model(shop) -> FashionBertForPreTraining:
    return FashionBertForPreTraining.from_pretrained(shop / "runs" / "shop")


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    """To be spoilt."""
    return shutil.copytree(exported, tmp_path / "copy")


@torch.no_grad()
def test_transformers_reads_a_bert(exported, model):
    tokenizer = AutoTokenizer.from_pretrained(exported)
    inputs = tokenizer(TITLES, padding=True, return_tensors="pt")
    live_BL = inputs["attention_mask"].bool()
    assert not live_BL.all()
    expected = model.encode_text(inputs["input_ids"], live_BL)
    theirs, loading = BertModel.from_pretrained(exported, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["mismatched_keys"]
    found = theirs.eval()(**inputs)
    torch.testing.assert_close(found.last_hidden_state[live_BL], expected[live_BL], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.pooler_output, model.tia_head.pooled(expected[:, 0]), atol=1e-5, rtol=0)
    theirs, loading = BertForMaskedLM.from_pretrained(exported, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["mismatched_keys"]
    logits = model.mlm_head.logits(expected, model.text_embeddings.word.weight)
    torch.testing.assert_close(theirs.eval()(**inputs).logits[live_BL], logits[live_BL], atol=1e-4, rtol=0)


def test_the_whole_model_is_read_from_the_same_directory(exported, shop, model):
    again = FashionBertForPreTraining.from_pretrained(exported)
    assert again.config == model.config and not again.training
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    processors = [FashionBertProcessor.from_pretrained(path) for path in (shop / "runs" / "shop", exported)]
    photos = [shop / "photos" / f"{number}.jpg" for number in (1001, 1005, 1012)]
    expected, found = (processor(TITLES, photos) for processor in processors)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert torch.equal(again.score(**found), model.score(**expected))


def test_it_is_a_checkpoint_to_evaluate_and_a_core_to_go_on_from(exported, shop, model):
    store = FeatureStore.open(shop / "stores" / "shop")
    scorers = [load_scorer(path, store, shop, device="cpu")[0] for path in (shop / "runs" / "shop", exported)]
    rows = store.rows(None)
    assert (scorers[0].score(rows, rows) == scorers[1].score(rows, rows)).all()
    assert is_own_model(exported)  # as model.core it brings the patches along
    warm = FashionBertForPreTraining.warm_start(exported, layers=1, hidden_dropout_prob=0.0)
    assert len(warm.encoder.layers) == 1
    for name in ("patch_embeddings.projection.weight", "encoder.layers.0.qkv.weight", "tia_head.classifier.weight"):
        assert torch.equal(warm.state_dict()[name], model.state_dict()[name]), name


def test_the_dtype_is_the_checkpoints(query_model, tmp_path):
    bert.export(query_model, tmp_path / "out", bert.Options())
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert FashionBertForPreTraining.from_pretrained(tmp_path / "out").config.type_vocab_size == 3
    assert BertModel.from_pretrained(tmp_path / "out").config.type_vocab_size == 3


@pytest.mark.parametrize("change", ["gone", "shorter", "another rank"])
@pytest.mark.parametrize("name", ["fashionbert.tia_head.classifier.weight", "fashionbert.mpm_head.projection.weight",
                                  "fashionbert.patch_embeddings.position.weight", "cls.predictions.bias",
                                  "bert.encoder.layer.1.attention.self.key.bias"])  # fmt: skip
def test_weights_that_do_not_fit_are_a_line(copy, name, change):
    tensors = load_file(copy / "model.safetensors")
    tensor = tensors.pop(name)
    if change != "gone":
        tensors[name] = tensor[:-1].clone() if change == "shorter" else tensor.sum()
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(InputError) as raised:
        FashionBertForPreTraining.from_pretrained(copy)
    assert str(copy) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "section", [3, [], {"patches": 9}, {"nonsense": 1}, {"weighting": {"alpha": -1}}, {"vocab_size": 7}]
)
def test_a_section_that_cannot_be_is_a_line(copy, section):
    config = json.loads((copy / "config.json").read_text())
    config["fashionbert"] = config["fashionbert"] | section if isinstance(section, dict) else section
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"config\.json"):
        FashionBertForPreTraining.from_pretrained(copy)


def test_what_a_model_from_python_has_not_is_left_out(model, tmp_path):
    """No tokenizer; with and without a manifest."""
    model.save_pretrained(tmp_path / "model")
    bert.export(tmp_path / "model", tmp_path / "known", bert.Options())
    assert {path.name for path in (tmp_path / "known").iterdir()} == {
        "README.md", "config.json", "model.safetensors", "patch_features.json",
    }  # fmt: skip
    (tmp_path / "model" / "patch_features.json").unlink()
    bert.export(tmp_path / "model", tmp_path / "unknown", bert.Options())
    assert not (tmp_path / "unknown" / "patch_features.json").exists()
    (tmp_path / "model" / "patch_features.json").write_text('{"grid": 2}')
    with pytest.raises(InputError, match=r"patch_features\.json: lacks"):
        bert.export(tmp_path / "model", tmp_path / "neither", bert.Options())


def test_where_the_catalogue_lay_is_not_given_away(exported, shop):
    source = json.loads((resolve_model_dir(shop / "runs" / "shop") / "patch_features.json").read_text())["source"]
    assert source == str(shop / "shop.csv")
    assert json.loads((exported / "patch_features.json").read_text())["source"] == "shop.csv"
    assert not any(str(shop).encode() in path.read_bytes() for path in exported.iterdir())


# Nothing half written ------------------------------------------------------------------------------------------------
def _refused(capsys, *words) -> str:
    assert main(["export", *map(str, words)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    return line


def test_an_output_that_holds_something_is_left_alone(shop, tmp_path, capsys):
    run = shop / "runs" / "shop"
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    for out in (tmp_path / "there", tmp_path / "there" / "mine.txt"):
        assert f"{out}: exists and is not empty" in _refused(capsys, "--checkpoint", run, "--out", out)
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    assert main(["export", "--checkpoint", str(run), "--out", str(tmp_path / "empty")]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--license", "Apache 2"], "--license Apache 2: no identifier"),
        (["--base-model", "bert"], "--base-model bert: no hub id"),
        (["--data", "store"], "--data: is what the graphs are checked on; add --onnx"),
        (["--evaluation", "nowhere.json"], "nowhere.json: cannot be read"),
    ],
)
def test_options_that_cannot_be_are_named(shop, tmp_path, capsys, words, message):
    assert message in _refused(capsys, "--checkpoint", shop / "runs" / "shop", "--out", tmp_path / "out", *words)
    assert "no such directory" in _refused(capsys, "--checkpoint", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_no_room_is_said_before_anything_is_written(shop, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bert.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**7))
    said = _refused(capsys, "--checkpoint", shop / "runs" / "shop", "--out", tmp_path / "new" / "out")
    assert "up to 0.0 GB are to be written, 0.0 GB are free there" in said
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("most", [0, 3000, 36_000])  # bytes: of the first file, of the tokenizer, of the weights
def test_a_disk_that_takes_no_more_leaves_nothing(shop, tmp_path, capsys, most):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        said = _refused(capsys, "--checkpoint", shop / "runs" / "shop", "--out", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"{tmp_path / 'out'}: cannot be written" in said
    assert not any(tmp_path.iterdir())
