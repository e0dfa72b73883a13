"""The model card: what the hub's own reader finds in it, and nothing that is not known."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from fashionbert_fast import FashionBertConfig
from fashionbert_fast.cli import main
from fashionbert_fast.config import Config
from fashionbert_fast.errors import InputError
from fashionbert_fast.export import card as module
from fashionbert_fast.export.card import Facts, card, read_evaluation
from fashionbert_fast.run_directory import resolve_model_dir

EVALUATION = {
    "protocol": "fashionbert", "queries": 40, "candidates": 101, "topped_up": 0, "alignment_accuracy": 0.703,
    "image_to_text": {"R@1": 0.125, "R@5": 0.5, "R@10": 0.75}, "split": "validation",
    "text_to_image": {"R@1": 0.25, "R@5": 0.625, "R@10": 1.0},
}  # fmt: skip


@pytest.fixture
def evaluation(shop, tmp_path) -> Path:
    """Of the shop's run, as the evaluation of a checkpoint writes it."""
    checkpoint = str(resolve_model_dir(shop / "runs" / "shop"))
    (tmp_path / "evaluation.json").write_text(json.dumps(EVALUATION | {"checkpoint": checkpoint}))
    return tmp_path / "evaluation.json"


def _fields(text: str) -> dict:
    return ModelCard(text).data.to_dict()


def test_the_fields_that_the_hub_reads(shop, tmp_path, evaluation):
    words = [
        "--license",
        "apache-2.0",
        "--base-model",
        "google-bert/bert-base-uncased",
        "--evaluation",
        str(evaluation),
    ]
    assert main(["export", "--checkpoint", str(shop / "runs" / "shop"), "--out", str(tmp_path / "mine"), *words]) == 0
    read = ModelCard.load(tmp_path / "mine" / "README.md")
    fields = read.data.to_dict()
    (index,) = fields.pop("model-index")
    assert fields == {
        "license": "apache-2.0", "library_name": "fashionbert_fast", "pipeline_tag": "feature-extraction",
        "base_model": "google-bert/bert-base-uncased",
        "tags": ["fashionbert", "bert", "transformers", "product-search", "image-text-matching"],
    }  # fmt: skip
    (result,) = index["results"]
    assert index["name"] == "mine" and result["dataset"]["name"] == "shop.csv"
    assert result["dataset"]["split"] == "validation" and "101 candidates" in result["task"]["name"]
    assert {metric["name"]: metric["value"] for metric in result["metrics"]} == {
        "Alignment accuracy": 0.703,
        **{f"Image to text {name}": value for name, value in EVALUATION["image_to_text"].items()},
        **{f"Text to image {name}": value for name, value in EVALUATION["text_to_image"].items()},
    }
    assert {result.metric_value for result in read.data.eval_results} == {0.703, 0.125, 0.25, 0.5, 0.625, 0.75, 1.0}
    for said in ("| Text to image | 0.2500 | 0.6250 | 1.0000 |", "12 (8 train, 4 validation)", "random:0:16",
                 "1 of 10,000", "cut at 6 tokens", "2 layers of 16", "40 queries"):  # fmt: skip
        assert said in read.text, said


def test_figures_say_by_which_score_they_are():
    for score, said in (("match", "101 candidates each. "), ("similarity", "101 candidates each, by similarity. ")):
        text = card(Facts("a-model", FashionBertConfig(), evaluation=EVALUATION | {"score": score}))
        assert said in text
        (index,) = _fields(text)["model-index"]
        assert index["results"][0]["task"]["name"].endswith("101 candidates" + ", by similarity" * (score != "match"))


def test_what_is_not_known_is_not_there():
    text = card(Facts("a-model", FashionBertConfig()))
    assert _fields(text).keys() == {"library_name", "pipeline_tag", "tags"}
    assert "Not stated" in text and "not known which patch features" in text
    assert "Figures" not in text and "Training" not in text and "onnx" not in text and "None" not in text


def test_the_hubs_name_of_a_core_is_said_where_it_is_certain(tmp_path, monkeypatch):
    def base_model(core: str | None) -> str | None:
        run = Config()
        run.model.core = core
        return _fields(card(Facts("a", FashionBertConfig(), run=run))).get("base_model")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    monkeypatch.setattr(module, "try_to_load_from_cache", lambda name, file: None)
    assert base_model("all-minilm-l6-v2") == "sentence-transformers/all-MiniLM-L6-v2"
    for core in (None, "runs/first", "runs/second", "./runs/second", "/runs/first", "~/first", "bert"):
        assert base_model(core) is None, core  # runs/second may be a directory of another machine
    monkeypatch.setattr(module, "try_to_load_from_cache", lambda name, file: f"/hub/{name}/{file}")
    assert base_model("google-bert/bert-base-uncased") == "google-bert/bert-base-uncased"


HOSTILE = 'a|b\n---\nlicense: mit\n# <script>alert("x")</script> `[x](http://y)`'


def test_names_of_strangers_stay_text(exported):
    """Of a manifest, a run and an evaluation that somebody wrote."""
    run = Config()
    run.model.core = HOSTILE
    features = json.loads((exported / "patch_features.json").read_text())
    manifest = module.Manifest.from_dict(features)
    manifest = dataclasses.replace(
        manifest, source=HOSTILE, splits={HOSTILE: 3}, encoder=manifest.encoder | {"name": HOSTILE}
    )
    evaluation = EVALUATION | {"protocol": HOSTILE, "split": HOSTILE}
    text = card(Facts(HOSTILE, FashionBertConfig(), manifest=manifest, run=run, evaluation=evaluation))
    front, body = re.fullmatch(r"---\n(.*?)\n---\n\n(.*)", text, re.DOTALL).groups()
    assert "license" not in yaml.safe_load(front)
    assert "<script" not in body and "](http://y" not in body and "\n---\n" not in body
    for line in body.splitlines():
        assert not line.startswith("| catalogue") or line.count("|") == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_to_image": None}, "has no text_to_image, so it is no evaluation"),
        ({"alignment_accuracy": 70.3}, "its figures are no fractions"),
        ({"alignment_accuracy": "high"}, "its figures are no fractions"),
        ({"text_to_image": [1]}, "its figures are no fractions"),
        (
            {"checkpoint": "/runs/shop/checkpoints/step-00000900/model"},
            "are of step-00000900, the export is of step-00000001",
        ),
    ],
)
def test_figures_of_something_else_are_refused(evaluation, shop, change, message):
    value = {name: part for name, part in (json.loads(evaluation.read_text()) | change).items() if part is not None}
    evaluation.write_text(json.dumps(value))
    with pytest.raises(InputError, match=message):
        read_evaluation(evaluation, resolve_model_dir(shop / "runs" / "shop"))


def test_what_the_card_shows_runs(exported, shop, tmp_path, monkeypatch):
    """Every block of Python, from where the exported directory is."""
    shutil.copytree(exported, tmp_path / "shop-model")
    shutil.copy(shop / "photos" / "1001.jpg", tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", Path("shop-model/README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        scope: dict = {}
        *statements, last = block.strip().splitlines()
        exec("\n".join(statements), scope)
        assert eval(last, scope).isfinite().all()
