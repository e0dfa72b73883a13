"""VECTORS: the model's own vectors whatever the batches, whole or refused; single texts and photos as in a store."""

from __future__ import annotations

import copy
import dataclasses
import doctest
import json
import shutil

import numpy as np
import pytest
import torch
from training import fashionbert, on_two_processes

from fashionbert_fast import FashionBertForPreTraining
from fashionbert_fast.data.pairs import collate_images, collate_pairs, collate_texts
from fashionbert_fast.errors import InputError
from fashionbert_fast.evaluation.run import load_scorer
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.files import seal
from fashionbert_fast.retrieval import embed as embed_module
from fashionbert_fast.retrieval.embed import Embedder, embed_store
from fashionbert_fast.retrieval.embedding_store import Vectors


@pytest.fixture(scope="module")
def scorer(shop):
    store = FeatureStore.open(shop / "stores" / "shop")
    return load_scorer(shop / "runs" / "shop", store, shop / "stores" / "shop", batch_size=5, device="cpu")[0]


@pytest.fixture(scope="module")
def embedder(shop):
    return Embedder.from_pretrained(shop / "runs" / "shop", device="cpu")


@pytest.mark.parametrize("of", ["text", "image", "both"])
@torch.inference_mode()
def test_vectors_of_a_store_are_the_models_own_one_at_a_time(scorer, of):
    rows = np.array([7, 0, 11, 3, 4, 9, 0])
    alone = {
        "text": lambda row: collate_texts(scorer.titles, row, 4, scorer.store.manifest.feature_size),
        "image": lambda row: collate_images(scorer.store, row),
        "both": lambda row: collate_pairs(scorer.store, scorer.titles, row, row),
    }[of]
    expected_nH = torch.cat([scorer.model.vectors(alone(rows[i : i + 1])) for i in range(len(rows))])
    found_nH = scorer.embed(rows, of)
    torch.testing.assert_close(torch.from_numpy(found_nH), expected_nH, atol=1e-5, rtol=1e-4)
    assert (found_nH[1] == found_nH[6]).all() and len(np.unique(found_nH.round(4), axis=0)) == 6


@pytest.mark.slow
def test_two_processes_write_the_vectors_of_one(shop, tmp_path):
    words = ["embed", "--checkpoint", str(shop / "runs" / "shop"), "--data", str(shop / "stores" / "shop")]
    words += ["--device", "cpu", "--batch-size", "1", "--out"]
    assert fashionbert(*words, str(tmp_path / "one")).returncode == 0
    assert on_two_processes(*words, str(tmp_path / "two")).stdout.count("12 vectors of") == 1
    one, two = (Vectors.open(tmp_path / name) for name in ("one", "two"))
    np.testing.assert_array_equal(one.vectors_NH, two.vectors_NH)
    np.testing.assert_array_equal(one.queries_QH, two.queries_QH)


@torch.inference_mode()
def test_queries_are_in_a_segment_of_their_own_where_the_model_has_one(scorer, embedder):
    config = dataclasses.replace(scorer.model.config, type_vocab_size=3)
    model = FashionBertForPreTraining(config).eval()
    of_three = copy.copy(scorer)
    of_three.model = model
    rows = np.arange(4)
    asked_nH, titles_nH = (of_three.embed(rows, of) for of in ("query", "text"))
    typed_nH = Embedder(model, embedder.processor).text(scorer.store.titles[:4])
    np.testing.assert_allclose(asked_nH, typed_nH, atol=1e-5)
    assert np.abs(asked_nH - titles_nH).max() > 1e-2
    np.testing.assert_array_equal(scorer.embed(rows, "query"), scorer.embed(rows, "text"))


def test_equal_photos_are_embedded_once_and_tie_exactly(scorer, monkeypatch):
    image_N = np.where(np.arange(12) % 2 == 1, 1, scorer.canonical.image_N)
    monkeypatch.setattr(scorer, "canonical", dataclasses.replace(scorer.canonical, image_N=image_N))
    seen = []
    vectors = scorer.model.vectors
    monkeypatch.setattr(scorer.model, "vectors", lambda batch: seen.append(len(batch.cls_row_B)) or vectors(batch))
    found_nH = scorer.embed(np.arange(12), "image")
    assert sum(seen) == 7 and (found_nH[1::2] == found_nH[1]).all()


def test_one_item_is_embedded_as_in_a_store(shop, embedder, vectors):
    there = Vectors.open(vectors)
    titles, photos = there.products.titles[:3], [shop / path for path in there.products.images[:3]]
    found_nH = embedder.items(titles, photos)
    np.testing.assert_allclose(found_nH, there.vectors_NH[:3], atol=2e-2)  # encoded anew, in bfloat16 where there is
    with open(photos[1], "rb") as file:
        np.testing.assert_array_equal(embedder.image([file]), embedder.image(photos[1:2]))
    features_PD = FeatureStore.open(shop / "stores" / "shop").features([0])
    both = embedder.query(titles[0], features_PD)
    np.testing.assert_allclose(both, there.vectors_NH[0], atol=1e-5)  # two segments: a query is a title there
    assert np.linalg.norm(embedder.query(titles[0], None)) == pytest.approx(1, abs=1e-5)


def test_a_match_is_what_the_model_scores(shop, embedder):
    store = FeatureStore.open(shop / "stores" / "shop")
    model = FashionBertForPreTraining.from_pretrained(shop / "runs" / "shop")
    features, titles = store.features([0, 1, 2]), ["red shirt", "blue boots", "green"]
    tokens = embedder.processor(titles, list(features))
    np.testing.assert_allclose(embedder.match(titles, features), model.score(**tokens), atol=1e-5)
    one_title = embedder.processor(["red shirt"] * 3, list(features))
    np.testing.assert_allclose(embedder.match(["red shirt"], features), model.score(**one_title), atol=1e-5)
    one_photo = embedder.processor(titles, [features[0]] * 3)
    np.testing.assert_allclose(embedder.match(titles, features[:1]), model.score(**one_photo), atol=1e-5)


def test_many_texts_are_several_batches(embedder):
    texts = [f"{colour} shirt {number}" for number in range(70) for colour in ("red", "blue")]
    np.testing.assert_allclose(embedder.text(texts)[130], embedder.text(texts[130:131])[0], atol=1e-5)
    assert embedder.match(texts, torch.zeros(1, 4, 16)).shape == (140,)


def test_the_command(shop, tmp_path, capsys):
    words = ["embed", "--checkpoint", str(shop / "runs/shop"), "--data", str(shop / "stores/shop"), "--device", "cpu"]
    done = fashionbert(*words, "--out", str(tmp_path / "v"), "--of", "text", "--split", "train", "--dtype", "float16")
    assert done.returncode == 0 and " vectors of 16 numbers, titles, by " in done.stdout
    manifest = json.loads((tmp_path / "v" / "vectors.json").read_text())
    rows = len(FeatureStore.open(shop / "stores/shop").rows("train"))
    raw = np.load(tmp_path / "v" / "vectors.npy")
    assert raw.dtype == np.float16 and raw.shape == (rows, 16) == (manifest["rows"], manifest["dims"])
    written = Vectors.open(tmp_path / "v")
    assert written.vectors_NH.dtype == np.float32 and len(written.queries_QH) == rows
    typed_nH = Embedder.from_pretrained(shop / "runs/shop", device="cpu").text(written.products.titles)
    for query_H in written.queries_QH:  # each of a title as somebody types it
        assert (query_H @ typed_nH.T).max() == pytest.approx(1, abs=1e-5)
    again = fashionbert(*words, "--out", str(tmp_path / "v"))
    assert again.returncode == 2 and "exists; add --overwrite" in again.stderr
    assert fashionbert(*words, "--out", str(tmp_path / "v"), "--overwrite").returncode == 0
    assert Vectors.open(tmp_path / "v").manifest["of"] == "both"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v"]


def edited_store(shop, target, **changes):
    """A copy of the shop's store whose manifest says something else."""
    shutil.copytree(shop / "stores" / "shop", target)
    manifest = json.loads((target / "manifest.json").read_text())
    manifest.pop("manifest_sha256")
    manifest["encoder"] |= changes
    from fashionbert_fast.features.manifest import Manifest

    known = {k: v for k, v in manifest.items() if k != "fingerprint"}
    (target / "manifest.json").write_text(json.dumps(seal(Manifest(**known).to_dict())))
    return target


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"--data": "OTHER"}, "patch features differ in encoder.weights_sha256"),
        ({"--data": "nowhere"}, "no such feature store"),
        ({"--checkpoint": "nowhere"}, "no such directory; give a run directory"),
        ({"--split": "test"}, "split 'test' has no products, the store has train, validation"),
        ({"--batch-size": "0"}, "--batch-size: 0 is no batch size"),
        ({"--out": "/proc/nothing"}, "/proc/nothing: cannot be written"),
        ({"--device": "cuda:99"}, "--device cuda:99: cannot be used"),
    ],
)
def test_what_cannot_be_embedded_is_one_line(shop, tmp_path, changes, complaint):
    options = {"--checkpoint": shop / "runs/shop", "--data": shop / "stores/shop", "--out": tmp_path / "v"} | changes
    if options["--data"] == "OTHER":
        options["--data"] = edited_store(shop, tmp_path / "other", weights_sha256="1" * 64)
    done = fashionbert("embed", *(str(word) for pair in options.items() for word in pair))
    assert done.returncode == 2 and complaint in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "v").exists()


def test_a_photo_that_is_none_is_named(embedder, shop):
    with pytest.raises(InputError, match=r"shop.csv: cannot be read as a photo \(it is no JPEG, PNG or WEBP file\)"):
        embedder.image([shop / "shop.csv"])
    with pytest.raises(InputError, match="titles and photos: 1 and 0"):
        embedder.items(["red shirt"], [])


def test_the_docstrings_example(shop, monkeypatch):
    monkeypatch.chdir(shop)
    (test,) = doctest.DocTestFinder(recurse=False).find(embed_module.Embedder, "Embedder", globs={})
    assert test.examples and doctest.DocTestRunner(verbose=False).run(test).failed == 0


def test_an_interrupted_embedding_leaves_nothing(shop, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        embed_store(shop / "runs/shop", shop / "stores/shop", tmp_path / "v", device="cpu")
    assert not list(tmp_path.iterdir())
