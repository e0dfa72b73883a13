"""The real model, tokenizer and collation under the protocols, on a small store of random features."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fashionbert_fast.catalogue.product import Product
from fashionbert_fast.commands import evaluate as command
from fashionbert_fast.data.pairs import collate_images, collate_texts
from fashionbert_fast.data.titles import TokenizedTitles
from fashionbert_fast.data.tokenizer import load_tokenizer, train_wordpiece
from fashionbert_fast.errors import InputError
from fashionbert_fast.evaluation.reports.comparison import compare
from fashionbert_fast.evaluation.reports.scores import read_scores
from fashionbert_fast.evaluation.run import evaluate_checkpoint, load_scorer
from fashionbert_fast.features.store import FeatureStore, Manifest, StoreWriter
from fashionbert_fast.inference.scorer import PairScorer, Work
from fashionbert_fast.model.config import FashionBertConfig
from fashionbert_fast.objectives.pretraining import FashionBertForPreTraining

PATCHES, FEATURE = 4, 6


@pytest.fixture
def store(make_products, tmp_path):
    return write_shop(tmp_path / "shop", make_products)


def write_shop(path, make_products, **changes) -> FeatureStore:
    """24 products with random features, every other one held out. changes: row_3={"title": ...}, ..."""
    listed = make_products({("clothes", "shirts"): 14, ("shoes", "boots"): 10})
    products = []
    for row, (category, subcategory) in enumerate(zip(listed.categories, listed.subcategories, strict=True)):
        title = " ".join(["plain", "striped", "long", "red"][: row % 4]) + f" item {row}"
        split = "validation" if row % 2 else "train"
        product = Product(listed.ids[row], title, category, subcategory, Path(f"{row}.jpg"), split)
        products.append(dataclasses.replace(product, **changes.get(f"row_{row}", {})))
    manifest = Manifest(
        grid=2,
        resize={"image_pixels": 8, "patch_pixels": 4, "interpolation": "bilinear"},
        encoder={
            "name": "none",
            "architecture": "none",
            "pooling": "mean",
            "weights_sha256": "0",
            "feature_size": FEATURE,
        },
        normalisation={"mean": [0.5] * 3, "std": [0.5] * 3},
    )
    with StoreWriter(path, patches=PATCHES, feature_size=FEATURE, dtype="float32") as writer:
        writer.append(products, torch.randn(24, PATCHES, FEATURE, generator=torch.Generator().manual_seed(0)))
        writer.commit(manifest)
    return FeatureStore.open(path)


@pytest.fixture
def model_dir(tmp_path, store):
    directory = tmp_path / "model"
    train_wordpiece(store.titles, 200, directory)
    torch.manual_seed(0)
    config = FashionBertConfig(
        vocab_size=200, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, patches=PATCHES, patch_feature_size=FEATURE, initializer_range=0.5,
    )  # fmt: skip
    FashionBertForPreTraining(config).save_pretrained(directory)
    return directory


def load(model_dir, store, batch_size: int) -> PairScorer:
    titles = TokenizedTitles(store.titles, load_tokenizer(model_dir), 32)
    return PairScorer(FashionBertForPreTraining.from_pretrained(model_dir), store, titles, batch_size=batch_size)


def test_scores_and_vectors_do_not_depend_on_the_batch_size(model_dir, store):
    text, image = (side.ravel() for side in np.meshgrid(np.arange(len(store)), np.arange(len(store))))
    one = load(model_dir, store, 1)
    scores, vectors = one.score(text, image), one.vectors(store.rows(None))
    assert scores.std() > 0.01  # an untrained model that still tells pairs apart, or the comparison proves nothing
    assert vectors.shape == (len(store), 16)
    for batch_size in (7, 64, 4096):
        other = load(model_dir, store, batch_size)
        np.testing.assert_allclose(other.score(text, image), scores, atol=1e-5)
        np.testing.assert_allclose(other.vectors(store.rows(None)), vectors, atol=1e-5)


@torch.inference_mode()
def test_similarity_is_that_of_the_models_own_vectors_one_at_a_time(model_dir, store):
    pairs = load(model_dir, store, 7)
    rows = store.rows(None)
    text, image = (side.ravel() for side in np.meshgrid(rows, rows))
    one = [rows[i : i + 1] for i in range(len(rows))]
    titles_NH = [pairs.model.vectors(collate_texts(pairs.titles, row, PATCHES, FEATURE))[0].numpy() for row in one]
    photos_NH = [pairs.model.vectors(collate_images(store, row))[0].numpy() for row in one]
    expected = [np.dot(titles_NH[t].astype(np.float64), photos_NH[i].astype(np.float64))
                for t, i in zip(text, image, strict=True)]  # fmt: skip
    found = pairs.score(text, image, kind="similarity")
    assert found.std() > 0.01 and found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_bf16_is_close_and_an_unknown_precision_is_named(model_dir, store):
    exact = load(model_dir, store, 64)
    rough = PairScorer(exact.model, store, exact.titles, precision="bf16")
    rows = store.rows(None)
    difference = np.abs(rough.score(rows, rows) - exact.score(rows, rows)).max()
    assert 0 < difference < 0.05  # not zero: it did run in bfloat16
    with pytest.raises(InputError, match="precision: 'int8'"):
        PairScorer(exact.model, store, exact.titles, precision="int8")


def options(model_dir, store, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(["--checkpoint", str(model_dir), "--data", str(store.path), "--device", "cpu", *more])


@pytest.mark.parametrize("protocol", ["fashionbert", "full"])
def test_the_command_from_checkpoint_to_json(model_dir, store, tmp_path, protocol):
    path = tmp_path / "evaluation.json"
    assert command.run(options(model_dir, store, "--protocol", protocol, "--json", str(path))) == 0
    result = json.loads(path.read_text())
    assert (result["protocol"], result["queries"], result["candidates"]) == (protocol, 12, 12)
    assert (result["split"], result["checkpoint"]) == ("validation", str(model_dir))
    assert all(0 <= result[side][key] <= 1 for side in ("image_to_text", "text_to_image") for key in ("R@1", "R@10"))
    assert ("recognition" in result) == (protocol == "full")
    if protocol == "full":
        assert result["recognition"]["category"]["classes"] == 2


def test_by_all_scores_from_checkpoint_to_files_that_compare(model_dir, store, tmp_path, capsys):
    """On training rows: thresholds, weight and choice are of the held-out ones."""
    path, scores = tmp_path / "all.json", [tmp_path / f"{name}.parquet" for name in ("match", "similarity")]
    how = ("--split", "train", "--candidates", "6")
    words = ("--score", "all", "--shortlist", "2", "--json", str(path), "--gallery", str(tmp_path / "page.html"))
    assert command.run(options(model_dir, store, *how, *words)) == 0
    shown = " ".join(capsys.readouterr().out.split())
    result = json.loads(path.read_text())
    assert set(result["scores"]) == {"match", "similarity", "sum", "shortlist"}
    best = max(result["scores"], key=lambda name: result["scores"][name]["validation"])
    assert result["score"] == best and f"{best} ranks best of all on split validation" in shown
    for key in ("alignment_accuracy", "image_to_text", "text_to_image", "intervals"):
        assert result[key] == result["scores"][best][key]
    assert (result["calibrated_on"], result["calibration_products_reported"]) == ("validation", 0)
    assert set(result["calibration"]) == {"similarity", "sum"} and "flatter" not in shown
    learnt = result["calibration"]["similarity"]["threshold"]
    assert f"similarity: threshold {learnt:.4g}, learnt on split validation" in shown

    for name, file in zip(("match", "similarity"), scores, strict=True):
        alone = tmp_path / f"{name}.json"
        assert (
            command.run(options(model_dir, store, *how, "--score", name, "--scores", str(file), "--json", str(alone)))
            == 0
        )
        one = json.loads(alone.read_text())
        assert one["score"] == name and ("calibration" in one) == (name == "similarity") and "scores" not in one
        for key in ("alignment_accuracy", "image_to_text", "text_to_image", "intervals", "mrr"):
            assert one[key] == result["scores"][name][key]
        assert one["lists"] == result["lists"]
    compared = compare(*map(read_scores, scores))
    assert (compared["a"], compared["b"]) == (str(model_dir), f"{model_dir} by similarity")
    assert any(row["difference"] for row in compared["rows"])


def test_what_is_learnt_on_the_reported_rows_says_so(model_dir, store, capsys):
    for split, products in (("validation", 12), ("all", 12)):
        found = evaluate_checkpoint(model_dir, store.path, split=split, score="similarity", device="cpu")
        assert (found["calibrated_on"], found["calibration_products_reported"]) == ("validation", products)
        assert command.run(options(model_dir, store, "--split", split, "--score", "similarity")) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert f"learnt on the rows reported ({products} products): they flatter" in shown


def test_without_held_out_rows_there_is_nothing_to_learn_on(model_dir, make_products, tmp_path):
    changes = {f"row_{row}": {"split": "train"} for row in range(24)}
    store = write_shop(tmp_path / "train", make_products, **changes)
    with pytest.raises(InputError, match=r"train: 0 products of split 'validation'.*--score match"):
        command.run(options(model_dir, store, "--split", "train", "--score", "sum"))
    assert command.run(options(model_dir, store, "--split", "train")) == 0


def test_a_model_of_another_kind_is_evaluated_by_its_own_loader(model_dir, store):
    """One that knows similarity alone; its threshold is learnt on validation rows, which the reported ones are not."""
    asked: list[set[str]] = []

    class Knows:
        scores, work = ("similarity",), Work()

        def __init__(self, store):
            self.store = store

        def score(self, text_rows, image_rows, kind="match"):
            assert kind == "similarity"
            asked.append({store.splits[row] for row in (*text_rows, *image_rows)})
            return 7 + 4.0 * (text_rows == image_rows)

    def loaded(checkpoint, store, data, batch_size, device, precision, keep):
        assert (checkpoint, data, batch_size, precision) == (model_dir, store.path, 9, "fp32")
        return Knows(store), checkpoint

    found = evaluate_checkpoint(model_dir, store.path, load=loaded, batch_size=9, protocol="full", split="train")
    assert asked == [{"train"}, {"validation"}]
    assert found["score"] == "similarity" and found["calibration"] == {"similarity": {"threshold": 9.0}}
    assert found["image_to_text"]["R@1"] == found["text_to_image"]["R@1"] == found["alignment_accuracy"] == 1
    assert "recognition" not in found
    for how, words in (({"score": "match"}, "--score match: the model has no match; give --score similarity"),
                       ({"recognise": "probe"}, "--recognition probe")):  # fmt: skip
        with pytest.raises(InputError, match=words):
            evaluate_checkpoint(model_dir, store.path, load=loaded, batch_size=9, **how)


def test_a_model_type_that_nobody_loads_is_named(model_dir, store):
    config = json.loads((model_dir / "config.json").read_text())
    (model_dir / "config.json").write_text(json.dumps(config | {"model_type": "clip"}))
    with pytest.raises(
        InputError, match=r"config.json: model_type 'clip' cannot be evaluated; give one of fashionbert"
    ):
        command.run(options(model_dir, store))


def test_leaks_of_a_held_out_split_are_told(model_dir, store, make_products, tmp_path):
    """Held out, row 3 repeats a training title in other letters, row 5 a training photo, row 7 a photo of row 5."""
    photo = {"image_hash": "1f"}
    changes = {"row_3": {"title": " Plain ITEM 0!"}, "row_2": photo, "row_5": photo, "row_7": photo}
    leaking = write_shop(tmp_path / "leaking", make_products, row_0={"title": "plain item 0"}, **changes)
    result = evaluate_checkpoint(model_dir, leaking.path, device="cpu")
    assert result["leaks"] == {"products": 3, "title": 1, "photo": 2, "group": 0}
    assert result["queries_with_a_twin_photo"] == 2
    sound = evaluate_checkpoint(model_dir, store.path, device="cpu")
    assert sound["leaks"] == {"products": 0, "title": 0, "photo": 0, "group": 0}
    for split in ("train", "all"):  # training is no leak into training
        assert "leaks" not in evaluate_checkpoint(model_dir, leaking.path, split=split, device="cpu")


def change_model(model_dir, change) -> None:
    model = FashionBertForPreTraining.from_pretrained(model_dir)
    change(model)
    model.save_pretrained(model_dir)


def test_a_store_of_another_encoder(model_dir, store):
    trained_on = store.manifest.to_dict()
    trained_on["encoder"] = trained_on["encoder"] | {"weights_sha256": "another"}
    change_model(model_dir, lambda model: setattr(model, "feature_manifest", trained_on))
    with pytest.raises(InputError, match=r"encoder.weights_sha256 .*another.* cannot be mixed") as caught:
        command.run(options(model_dir, store))
    assert "\n" not in str(caught.value)


def test_a_model_saved_without_a_manifest_still_has_to_fit(model_dir, store):
    store.manifest.encoder["feature_size"] = 2048
    with pytest.raises(InputError, match=r"4 patches of 2048 features, but .* takes 4 of 6"):
        load_scorer(model_dir, store, store.path)


def test_a_broken_model_is_named_and_not_ranked(model_dir, store):
    change_model(model_dir, lambda model: torch.nn.init.constant_(model.tia_head.classifier.weight, float("nan")))
    with pytest.raises(InputError, match="as NaN"):
        command.run(options(model_dir, store))


@pytest.mark.parametrize("missing", ["checkpoint", "data"])
def test_a_missing_directory_is_named(model_dir, store, tmp_path, missing):
    args = options(model_dir, store)
    setattr(args, missing, tmp_path / "nowhere")
    with pytest.raises(InputError, match="nowhere"):
        command.run(args)
