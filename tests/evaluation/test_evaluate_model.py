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
from fashionbert_fast.data.titles import TokenizedTitles
from fashionbert_fast.data.tokenizer import load_tokenizer, train_wordpiece
from fashionbert_fast.errors import InputError
from fashionbert_fast.evaluation.checkpoint import evaluate_checkpoint, load_scorer
from fashionbert_fast.evaluation.scorer import PairScorer
from fashionbert_fast.features.store import FeatureStore, Manifest, StoreWriter
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
