"""Searches: the vectors' order, the joint model's where asked, filters, and a line for what cannot be answered."""

from __future__ import annotations

import doctest
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from shop import write_run, write_shop
from training import fashionbert

from fashionbert_fast import FashionBertForPreTraining, FashionBertProcessor
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.files import seal
from fashionbert_fast.retrieval import search as search_module
from fashionbert_fast.retrieval.embed import embed_store
from fashionbert_fast.retrieval.embedding_store import Vectors
from fashionbert_fast.retrieval.index import build_index
from fashionbert_fast.retrieval.search import Searcher


@pytest.fixture(scope="module")
def searcher(index):
    return Searcher.open(index, device="cpu")


def test_words_find_the_nearest_vectors(searcher, vectors):
    source = Vectors.open(vectors)
    cosine_N = source.vectors_NH @ searcher.embedder.text(["red boots"])[0]
    hits = searcher.search("red boots", top=5)
    assert [hit.row for hit in hits] == np.argsort(-cosine_N)[:5].tolist()
    assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5] and hits[0].probability is None
    first = hits[0].row
    assert hits[0].title == source.products.titles[first] and hits[0].id == source.products.ids[first]
    assert len(searcher.search("red boots", top=50)) == 12


def test_a_product_finds_itself(searcher, shop):
    """Its title and its photo together are the very sequence its vector was made of."""
    for hit in searcher.search("green", top=12):
        assert searcher.search(hit.title, shop / hit.image, top=1)[0].row == hit.row


def test_a_photo_alone_is_searched_by_its_patches(searcher, shop, vectors):
    cosine_N = Vectors.open(vectors).vectors_NH @ searcher.embedder.image([shop / "photos/1003.jpg"])[0]
    found = [hit.row for hit in searcher.search(image=shop / "photos/1003.jpg", top=12)]
    assert found == np.argsort(-cosine_N).tolist()


@pytest.mark.parametrize("asked", ["text", "image", "both"])
def test_reranking_is_the_order_of_the_joint_model(searcher, shop, asked):
    store = FeatureStore.open(shop / "stores/shop")
    model, processor = (
        c.from_pretrained(shop / "runs/shop") for c in (FashionBertForPreTraining, FashionBertProcessor)
    )
    text, photo = "black dress", shop / "photos/1007.jpg"
    of_words = model.score(**processor([text] * 12, list(store.features(range(12))))).numpy()
    of_photo = model.score(**processor(store.titles, [photo] * 12)).numpy()
    expected_N = {"text": of_words, "image": of_photo, "both": (of_words + of_photo) / 2}[asked]
    hits = searcher.search(None if asked == "image" else text, None if asked == "text" else photo, rerank=True, top=12)
    assert [hit.probability for hit in hits] == sorted((hit.probability for hit in hits), reverse=True)
    np.testing.assert_allclose([hit.probability for hit in hits], expected_N[[hit.row for hit in hits]], atol=1e-5)


def test_only_the_nearest_are_reranked(searcher, monkeypatch):
    monkeypatch.setattr(search_module, "RERANKED", 4)
    nearest = {hit.row for hit in searcher.search("blue shirt", top=4)}
    assert {hit.row for hit in searcher.search("blue shirt", top=3, rerank=True)} <= nearest
    assert len(searcher.search("blue shirt", top=6, rerank=True)) == 6


def test_a_category_is_searched_alone(searcher):
    hits = searcher.search("red shirt", category="BOOTS")
    assert {hit.category for hit in hits} == {"boots"} and len(hits) == 4
    assert {hit.category for hit in searcher.search("red", category="shirt", rerank=True)} == {"shirt"}


def test_the_command(index, shop, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("search", str(index), "--text", "red [b]shirt[/b]", "--image", str(shop / "photos/1001.jpg"), "--rerank")
    done = fashionbert(*words, "--top", "4", "--json", "hits.json")
    assert done.returncode == 0, done.stderr
    assert "search.png: 4 products" in done.stdout and "match" in done.stdout and "red [b]shirt[/b]" in done.stdout
    answer = json.loads((tmp_path / "hits.json").read_text())
    assert answer["query"]["text"] == "red [b]shirt[/b]" and answer["rerank"] and len(answer["hits"]) == 4
    assert set(answer["hits"][0]) == {"rank", "row", "id", "title", "category", "subcategory", "image", "cosine",
                                      "probability"}  # fmt: skip
    with Image.open(tmp_path / "search.png") as sheet:
        assert sheet.width > 500 and sheet.height > 250
        colours = np.asarray(sheet.convert("RGB")).reshape(-1, 3)
    red = (colours[:, 0] > 150) & (colours[:, 1:] < 60).all(1)  # of the query's photo at least
    assert red.sum() > 5000


def test_moved_photos_are_said_and_the_answer_comes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_shop(tmp_path)
    embed_store(tmp_path / "runs/shop", tmp_path / "stores/shop", tmp_path / "v", device="cpu")
    build_index(tmp_path / "v", tmp_path / "i")
    assert "where they were" not in fashionbert("search", "i", "--text", "red shirt").stdout
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    done = fashionbert("search", "i", "--text", "red shirt", "--top", "3", "--rerank")
    assert done.returncode == 0 and "3 photos are not where they were" in done.stdout


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "nothing to search for; give --text WORDS, --image FILE or both"),
        (["--text", ""], "text '': no words to search for"),
        (["--text", "  \t "], r"text '  \\t ': no words to search for"),
        (["--text", "\u200b"], "no words to search for"),
        (["--image", "shop.csv"], "shop.csv: cannot be read as a photo (it is no JPEG, PNG or WEBP file)"),
        (["--image", "nowhere.jpg"], "nowhere.jpg: cannot be read as a photo"),
        (["--image", "photos"], "photos: cannot be read as a photo"),
        (["--text", "red", "--top", "0"], "top 0: must be 1 or more"),
        (["--text", "red", "--category", "hats"], "category hats: no product has it; the index has boots, long"),
        (["--text", "red", "--checkpoint", "nowhere"], "nowhere: no such directory; give a run directory"),
        (["--text", "red", "--out", "nowhere/sheet.png"], "no directory nowhere; create it"),
        (["--text", "red", "--rerank", "--data", "nowhere"], "reranking for words reads the store"),
    ],
)
def test_what_cannot_be_searched_is_one_line(index, shop, tmp_path, monkeypatch, words, complaint):
    monkeypatch.chdir(shop)
    done = fashionbert(
        "search", str(index), *(["--out", str(tmp_path / "s.png")] if "--out" not in words else []), *words
    )
    assert done.returncode == 2 and complaint.replace("\\\\", "\\") in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


def test_an_index_that_is_none_is_one_line(shop, tmp_path):
    for path, complaint in ((tmp_path / "no", "no such directory; make one with: fashionbert index VECTORS --out"),
                            (shop, "no index.json in it; make one with: fashionbert index")):  # fmt: skip
        done = fashionbert("search", str(path), "--text", "red", "--out", str(tmp_path / "s.png"))
        assert done.returncode == 2 and complaint in done.stderr and done.stderr.count("\n") == 1


def write_other_model(shop, target):
    """A model of the shop's features with other weights."""
    model_dir = write_run(target, FeatureStore.open(shop / "stores/shop"))
    model = FashionBertForPreTraining.from_pretrained(model_dir)
    model.text_embeddings.word.weight.data += 1
    model.save_pretrained(target / "other")
    for file in model_dir.iterdir():
        if not (target / "other" / file.name).exists():
            shutil.copy(file, target / "other")
    return target / "other"


def test_a_model_that_is_gone_or_another_is_one_line_and_one_that_moved_is_given(shop, tmp_path):
    shutil.copytree(shop / "runs", tmp_path / "runs")
    embed_store(tmp_path / "runs/shop", shop / "stores/shop", tmp_path / "v", device="cpu")
    build_index(tmp_path / "v", tmp_path / "i")
    (tmp_path / "runs").rename(tmp_path / "moved")
    words = ("search", str(tmp_path / "i"), "--text", "red", "--out", str(tmp_path / "s.png"))
    done = fashionbert(*words)
    assert done.returncode == 2 and "give --checkpoint DIR, where it lies now" in done.stderr
    other = write_other_model(shop, tmp_path / "new")
    done = fashionbert(*words, "--checkpoint", str(other))
    assert done.returncode == 2 and "its vectors are of another model than" in done.stderr
    assert done.stderr.count("\n") == 1
    assert fashionbert(*words, "--checkpoint", str(tmp_path / "moved/shop")).returncode == 0


def test_reranking_reads_the_very_store(index, shop, tmp_path):
    shutil.copytree(shop / "stores/shop", tmp_path / "same")
    words = ("search", str(index), "--text", "red", "--rerank", "--out", str(tmp_path / "s.png"), "--data")
    assert fashionbert(*words, str(tmp_path / "same")).returncode == 0
    manifest = json.loads((tmp_path / "same/manifest.json").read_text())
    manifest.pop("manifest_sha256")
    (tmp_path / "same/manifest.json").write_text(json.dumps(seal(manifest | {"content_sha256": "0" * 64})))
    done = fashionbert(*words, str(tmp_path / "same"))
    assert done.returncode == 2 and "is another store than" in done.stderr and done.stderr.count("\n") == 1


def test_the_docstrings_example(shop, index, tmp_path, monkeypatch):
    (tmp_path / "indices").mkdir()
    (tmp_path / "indices/shop").symlink_to(index)
    (tmp_path / "photos").symlink_to(shop / "photos")
    monkeypatch.chdir(tmp_path)
    (test,) = doctest.DocTestFinder(recurse=False).find(Searcher, "Searcher", globs={})
    assert test.examples and doctest.DocTestRunner(verbose=False).run(test).failed == 0
