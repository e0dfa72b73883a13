"""Vectors in Qdrant, in its local mode: the same answers, once each, going on where it stopped."""

from __future__ import annotations

import numpy as np
import pytest
from training import fashionbert

from fashionbert_fast.errors import InputError
from fashionbert_fast.retrieval import engines
from fashionbert_fast.retrieval.embedding_store import Vectors
from fashionbert_fast.retrieval.engines import to_qdrant
from fashionbert_fast.retrieval.search import Searcher

qdrant = pytest.importorskip("qdrant_client")


def points(folder, collection: str = "shop") -> list:
    client = qdrant.QdrantClient(path=str(folder))
    found, _ = client.scroll(collection, limit=100, with_vectors=True)
    client.close()
    return found


def test_a_collection_answers_as_the_index_does(vectors, index, tmp_path):
    words = ("index", str(vectors), "--to", "qdrant", "--url", str(tmp_path / "q"), "--collection", "shop")
    done = fashionbert(*words)
    assert done.returncode == 0 and "collection shop: 12 products written, 0 were there" in done.stdout
    searcher = Searcher.open(index, device="cpu")
    client = qdrant.QdrantClient(path=str(tmp_path / "q"))
    query = searcher.embedder.text(["red boots"])[0].tolist()
    found = client.query_points("shop", query=query, limit=5).points
    client.close()
    hits = searcher.search("red boots", top=5)
    assert [point.payload["id"] for point in found] == [hit.id for hit in hits]
    np.testing.assert_allclose([point.score for point in found], [hit.cosine for hit in hits], atol=1e-5)
    assert found[0].payload["title"] == hits[0].title and found[0].payload["image"] == hits[0].image
    assert "collection shop: 0 products written, 12 were there" in fashionbert(*words).stdout
    assert len(points(tmp_path / "q")) == 12


def test_an_interrupted_upload_goes_on(vectors, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "BATCH", 5)
    upsert, calls = qdrant.QdrantClient.upsert, []

    def failing(self, *args, **keywords):
        calls.append(1)
        if len(calls) == 2:
            raise ConnectionError("the wire is cut")
        return upsert(self, *args, **keywords)

    monkeypatch.setattr(qdrant.QdrantClient, "upsert", failing)
    with pytest.raises(InputError, match="the wire is cut"):
        to_qdrant(vectors, str(tmp_path / "q"), "shop")
    assert to_qdrant(vectors, str(tmp_path / "q"), "shop") == (7, 5)
    source, there = Vectors.open(vectors), points(tmp_path / "q")
    assert sorted(point.payload["id"] for point in there) == source.products.ids
    for point in there:
        row = source.products.ids.index(point.payload["id"])
        np.testing.assert_allclose(point.vector, source.vectors_NH[row], atol=1e-6)


def test_a_collection_of_other_vectors_and_no_server_are_one_line(vectors, tmp_path):
    from qdrant_client import models

    client = qdrant.QdrantClient(path=str(tmp_path / "q"))
    client.create_collection("other", vectors_config=models.VectorParams(size=3, distance=models.Distance.COSINE))
    client.close()
    words = ("index", str(vectors), "--to", "qdrant", "--url")
    for url, collection, complaint in (
        (str(tmp_path / "q"), "other", "--collection other: holds other vectors than 16 numbers"),
        ("http://127.0.0.1:9", "shop", "--url http://127.0.0.1:9: Qdrant does not take collection shop"),
    ):
        done = fashionbert(*words, url, "--collection", collection)
        assert done.returncode == 2 and complaint in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_vectors_made_anew_replace_those_of_the_same_products(vectors, shop, tmp_path):
    from fashionbert_fast.retrieval.embed import embed_store

    to_qdrant(vectors, str(tmp_path / "q"), "shop")
    embed_store(shop / "runs/shop", shop / "stores/shop", tmp_path / "v", of="image", device="cpu")
    assert to_qdrant(tmp_path / "v", str(tmp_path / "q"), "shop") == (12, 0)
    there = {point.payload["id"]: point.vector for point in points(tmp_path / "q")}
    source = Vectors.open(tmp_path / "v")
    np.testing.assert_allclose(there["1004"], source.vectors_NH[source.products.ids.index("1004")], atol=1e-6)
