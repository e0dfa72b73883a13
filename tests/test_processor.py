"""FashionBertProcessor and `score`: what a person gets from Python is what training and evaluation saw."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shop import ENCODER, GRID, MAX_TEXT_TOKENS

import fashionbert_fast
from fashionbert_fast import FashionBertForPreTraining, FashionBertProcessor
from fashionbert_fast import processor as module
from fashionbert_fast.errors import InputError
from fashionbert_fast.evaluation.run import load_scorer
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.processor import max_text_tokens

PATCHES, FEATURE = GRID**2, 16


@pytest.fixture(scope="module")
def model(shop) -> FashionBertForPreTraining:
    return FashionBertForPreTraining.from_pretrained(shop / "runs" / "shop")


@pytest.fixture(scope="module")
def processor(shop) -> FashionBertProcessor:
    return FashionBertProcessor.from_pretrained(shop / "runs" / "shop", device="cpu")


@pytest.fixture(scope="module")
def store(shop) -> FeatureStore:
    return FeatureStore.open(shop / "stores" / "shop")


@pytest.fixture(scope="module")
def rows(shop) -> list[dict[str, str]]:
    return list(csv.DictReader((shop / "shop.csv").open()))


@pytest.fixture
def model_dir(shop, tmp_path) -> Path:
    """A copy of the run's model directory, to be spoilt."""
    return shutil.copytree(shop / "runs" / "shop" / "checkpoints" / "step-00000001" / "model", tmp_path / "model")


# The same as in training and evaluation ------------------------------------------------------------------------------
def test_scores_are_those_of_the_evaluation(shop, model, processor, store):
    """Every title with every photo, from rows of the store and from the files."""
    scorer, _ = load_scorer(shop / "runs" / "shop", store, shop, device="cpu")
    text, image = (side.ravel() for side in np.meshgrid(np.arange(len(store)), np.arange(len(store))))
    expected = scorer.score(text, image)
    assert expected.std() > 0.05  # an untrained model that still tells pairs apart, or the comparison proves nothing
    titles, photos = [store.titles[row] for row in text], [store.images[row] for row in image]
    from_rows = model.score(**processor(titles, store.features(image)))
    assert from_rows.dtype == torch.float32 and from_rows.shape == (len(store) ** 2,)
    np.testing.assert_allclose(from_rows, expected, atol=1e-5)
    np.testing.assert_allclose(model.score(**processor(titles, photos)), expected, atol=0.02)  # of bfloat16 features


def test_inputs_are_those_of_training(processor, store, rows, shop):
    inputs = processor(text=[r["title"] for r in rows], images=[shop / r["photo"] for r in rows], return_tensors="pt")
    B = len(rows)
    assert inputs["patch_features"].dtype == torch.bfloat16  # as in the store
    torch.testing.assert_close(inputs["patch_features"], store.features(np.arange(B)), atol=0.02, rtol=0.02)
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (B, MAX_TEXT_TOKENS)  # the longest are cut
    assert set(inputs) == {"input_ids", "attention_mask", "patch_features"}
    assert inputs.to("cpu")["input_ids"] is not None  # a BatchEncoding, which moves to a device


def test_a_title_is_plain_text(processor, shop):
    ids = processor("[MASK] [SEP] shirt", shop / "photos" / "1001.jpg")["input_ids"][0].tolist()
    assert processor.tokenizer.mask_token_id not in ids
    assert ids.count(processor.tokenizer.sep_token_id) <= 1


def test_three_lines_score_a_title_with_a_photo(shop, monkeypatch):
    monkeypatch.chdir(shop)
    model = fashionbert_fast.FashionBertForPreTraining.from_pretrained("runs/shop")
    processor = fashionbert_fast.FashionBertProcessor.from_pretrained("runs/shop")
    probability = model.score(**processor("red shirt", "photos/1001.jpg"))
    assert probability.shape == (1,) and 0 < probability < 1


# What images may be --------------------------------------------------------------------------------------------------
def test_an_image_is_a_path_a_pil_image_or_features(processor, shop, store):
    path = shop / "photos" / "1003.jpg"
    features_PD = processor("a", path)["patch_features"][0]
    same = [str(path), Image.open(path), features_PD, features_PD.float()]
    for images in (*same, [same[0]], features_PD[None]):
        torch.testing.assert_close(processor("a", images)["patch_features"][0], features_PD, atol=0.02, rtol=0.02)
    mixed_BPD = processor(["a"] * 5, [store.features([0])[0], *same])["patch_features"]
    assert torch.equal(mixed_BPD[0], store.features([0])[0])
    assert mixed_BPD.shape == (5, PATCHES, FEATURE)
    torch.testing.assert_close(mixed_BPD[1:], features_PD.expand(4, -1, -1), atol=0.02, rtol=0.02)


def test_a_photo_is_encoded_once_and_many_run_side_by_side(processor, shop, monkeypatch):
    photos = sorted((shop / "photos").iterdir())
    together = processor(["a"] * 12, photos)["patch_features"]
    seen = []
    encode = processor.encoder.encode
    monkeypatch.setattr(processor.encoder, "batch_size", 5)
    monkeypatch.setattr(processor.encoder, "encode", lambda images: seen.append(len(images)) or encode(images))
    again = processor(["a"] * 24, photos * 2)["patch_features"]
    assert sorted(seen) == [2, 5, 5]
    torch.testing.assert_close(again, together.repeat(2, 1, 1), atol=0.02, rtol=0.02)


def test_features_need_no_encoder(shop, store, monkeypatch):
    monkeypatch.setattr(module, "load_encoder", lambda *_, **__: pytest.fail("loaded"))
    processor = FashionBertProcessor.from_pretrained(shop / "runs" / "shop")
    assert len(processor(["red shirt"] * 2, store.features([0, 1]))["patch_features"]) == 2


@pytest.mark.parametrize(
    ("text", "images", "message"),
    [
        ([], [], "text is empty; give at least one title"),
        (["a", "b"], ["p.jpg"], r"2 titles, but 1 images; give one image a title"),
        ("a", ["p.jpg", "q.jpg"], "1 titles, but 2 images"),
        (["a", None], ["p.jpg"] * 2, r"text\[1\] is None, not a title"),
        ("a", "nowhere.jpg", r"images\[0\]: nowhere.jpg cannot be read \(.*No such file.*\); give a photo"),
        (["a", "b"], ["broken.jpg"] * 2, r"images\[0\]: broken.jpg cannot be read \(it is no JPEG"),
        ("a", [np.zeros((8, 8, 3))], r"images\[0\]: a ndarray; give a path, a PIL image or patch features"),
        ("a", torch.zeros(PATCHES, 3), r"images\[0\]: torch.float32 \(4, 3\), not patch features \(4, 16\)"),
        ("a", torch.zeros(1, PATCHES, FEATURE, dtype=torch.uint8), r"images\[0\]: torch.uint8 \(4, 16\), not patch"),
    ],
)
def test_what_cannot_be_used_is_named(processor, tmp_path, monkeypatch, text, images, message):
    monkeypatch.chdir(tmp_path)
    Path("broken.jpg").write_bytes(b"not a photo")
    with pytest.raises(InputError, match=message):
        processor(text, images)
    with pytest.raises(InputError, match="return_tensors 'np'"):
        processor("a", torch.zeros(PATCHES, FEATURE), return_tensors="np")


# Reading and writing -------------------------------------------------------------------------------------------------
def test_saved_and_read_it_is_the_same(shop, processor, model, store, tmp_path):
    inputs = processor(store.titles, store.features(store.rows(None)))
    processor.save_pretrained(tmp_path / "alone")
    model.save_pretrained(tmp_path / "both")
    processor.save_pretrained(tmp_path / "both")
    checkpoint = shop / "runs" / "shop" / "checkpoints" / "step-00000001"
    for source in (tmp_path / "alone", tmp_path / "both", checkpoint, str(checkpoint / "model")):
        again = FashionBertProcessor.from_pretrained(source)(store.titles, store.features(store.rows(None)))
        assert all(torch.equal(again[name], inputs[name]) for name in inputs), source
    read = FashionBertForPreTraining.from_pretrained(tmp_path / "both")
    assert torch.equal(read.score(**inputs), model.score(**inputs))
    assert max_text_tokens(tmp_path / "both") == MAX_TEXT_TOKENS  # `fashionbert evaluate` cuts there as well


def test_titles_are_cut_as_in_the_run(tmp_path):
    (tmp_path / "model").mkdir()
    config = fashionbert_fast.FashionBertConfig(max_position_embeddings=512)
    (tmp_path / "model" / "config.json").write_text(config.to_json())
    assert max_text_tokens(tmp_path / "model") == 64
    (tmp_path / "config.yaml").write_text("data:\n  store: s\n  max_text_tokens: 20\ntrain:\n  output: o\n")
    assert max_text_tokens(tmp_path / "model") == 20
    config.max_position_embeddings = 16
    (tmp_path / "model" / "config.json").write_text(config.to_json())
    assert max_text_tokens(tmp_path / "model") == 16
    (tmp_path / "model" / "processor_config.json").write_text('{"max_text_tokens": "many"}')
    with pytest.raises(InputError, match=r"processor_config.json: max_text_tokens must be an integer"):
        max_text_tokens(tmp_path / "model")


def test_a_model_whose_features_nobody_knows_is_refused(model_dir):
    (model_dir / "patch_features.json").unlink()
    with pytest.raises(InputError, match=r"no patch_features.json, so nothing says which patches the model knows"):
        FashionBertProcessor.from_pretrained(model_dir)
    (model_dir / "patch_features.json").write_text('{"grid": 2}')
    with pytest.raises(InputError, match=r"patch_features.json: lacks resize.image_pixels"):
        FashionBertProcessor.from_pretrained(model_dir)


def test_another_encoder_is_refused(shop, model_dir):
    photo = shop / "photos" / "1001.jpg"
    other = FashionBertProcessor.from_pretrained(model_dir, encoder="random:1:16", device="cpu")
    with pytest.raises(
        InputError, match=r"not those the model was trained on \(encoder.weights_sha256.*; give encoder="
    ):
        other("a", photo)
    manifest = json.loads((model_dir / "patch_features.json").read_text())
    manifest["encoder"]["name"] = "a-directory-of-long-ago"
    (model_dir / "patch_features.json").write_text(json.dumps(manifest))
    lost = FashionBertProcessor.from_pretrained(model_dir, device="cpu")
    remedy = "give encoder=, a local directory of a-directory-of-long-ago"
    with pytest.raises(InputError, match=f"patch encoder cannot be had here .*{remedy}"):
        lost("a", photo)
    found = FashionBertProcessor.from_pretrained(model_dir, encoder=ENCODER, device="cpu")
    assert found("a", photo)["patch_features"].isfinite().all()


def test_an_encoder_that_computes_otherwise_is_refused(processor, shop, monkeypatch):
    """Equal in all that the manifest says, but not in what it makes of a photo."""
    again = FashionBertProcessor.from_pretrained(shop / "runs" / "shop", device="cpu")
    load = module.load_encoder

    def spoilt(*args, **options):
        encoder = load(*args, **options)
        encoder.shift_3 = encoder.shift_3.flip(0) + 0.5
        return encoder

    monkeypatch.setattr(module, "load_encoder", spoilt)
    with pytest.raises(InputError, match=r"apart on the same photo"):
        again("a", shop / "photos" / "1001.jpg")


# score ---------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def inputs(processor, store):
    return processor(store.titles, store.features(store.rows(None)))


def test_score_drops_nothing_and_leaves_the_mode_as_it_was(model, inputs):
    expected = model.score(**inputs)
    model.train()
    assert torch.equal(model.score(**inputs), expected) and model.training
    with pytest.raises(InputError):
        model.score(**(inputs | {"patch_features": inputs["patch_features"][:, :1]}))
    assert model.training
    model.eval()
    assert torch.equal(model.score(**inputs), expected) and not model.training
    assert not expected.requires_grad


@pytest.mark.parametrize("batch_size", [1, 5, 1000])
def test_the_batch_size_moves_scores_by_noise_only(model, inputs, batch_size):
    torch.testing.assert_close(model.score(**inputs, batch_size=batch_size), model.score(**inputs), atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="batch_size 0"):
        model.score(**inputs, batch_size=0)


def test_padding_on_either_side_is_no_text(model, inputs):
    L, B = inputs["input_ids"].shape[1], len(inputs["input_ids"])
    padding = torch.full((B, 3), 7)  # any id will do
    for order in ((inputs["input_ids"], padding), (padding, inputs["input_ids"])):
        nothing = torch.zeros_like(padding)
        mask_order = [nothing if part is padding else inputs["attention_mask"] for part in order]
        padded = inputs | {"input_ids": torch.cat(order, 1), "attention_mask": torch.cat(mask_order, 1).bool()}
        assert padded["input_ids"].shape[1] == L + 3
        assert torch.equal(model.score(**padded), model.score(**inputs))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("input_ids", lambda x: x[:, :0], r"input_ids must have shape \(B, L\), neither of them 0"),
        ("input_ids", lambda x: x[0], r"input_ids must have shape \(B, L\)"),
        ("input_ids", lambda x: x + 100, "is beyond the model's vocabulary of 100; use the tokenizer"),
        ("attention_mask", lambda x: x[:, 1:], "attention_mask must have the shape of input_ids"),
        ("attention_mask", lambda x: x * 0, "titles of 0 to 0 tokens, but the model takes 1 to 16"),
        ("patch_features", lambda x: x[:, :, 1:], r"\(B, P, D\) = \(12, 4, 16\), got torch.bfloat16 \(12, 4, 15\)"),
        ("patch_features", lambda x: x[1:], r"\(B, P, D\) = \(12, 4, 16\), got torch.bfloat16 \(11, 4, 16\)"),
        ("patch_features", lambda x: x.int(), r"patch_features must be floating"),
    ],
)
def test_tensors_that_the_model_cannot_take_are_named(model, inputs, name, change, message):
    with pytest.raises(InputError, match=message):
        model.score(**(inputs | {name: change(inputs[name])}))


def test_packed_tensors_reach_the_other_methods(model, inputs):
    pairs = model.pack(**inputs)
    assert model.pooled(pairs).shape == (12, 16)
    torch.testing.assert_close(model.alignment_logits(pairs).softmax(1)[:, 1], model.score(**inputs))
    assert model.encode(pairs).shape == (pairs.rows, 16)


def test_the_package_names_what_it_has():
    assert set(fashionbert_fast.HOMES) == set(fashionbert_fast.__all__) - {"__version__"}
    with pytest.raises(AttributeError, match="no attribute 'FashionBertPreprocessor'"):
        fashionbert_fast.FashionBertPreprocessor  # noqa: B018
