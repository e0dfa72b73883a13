"""The measurement of searches gives the contract's rows, drawn and of an index of one's own."""

from __future__ import annotations

import json

import pytest

from benchmarks.services import bench_search
from fashionbert_fast.cli import main
from fashionbert_fast.retrieval.embed import embed_store
from fashionbert_fast.retrieval.index import build_index


@pytest.mark.parametrize("own", [False, True])
def test_bench_search(own, shop, tmp_path, monkeypatch):
    words = ["bench", "search", "--quick", "--json", str(tmp_path / "search.json")]
    if own:
        embed_store(shop / "runs/shop", shop / "stores/shop", tmp_path / "v", device="cpu")
        build_index(tmp_path / "v", tmp_path / "i", kind="hnsw")
        words += ["--index", str(tmp_path / "i")]
    for name, size in {"PRODUCTS": 400, "QUERIES": 50, "LAYERS": 1, "H": 48}.items():
        monkeypatch.setattr(bench_search, name, size)
    assert main(words) == 0
    rows = json.loads((tmp_path / "search.json").read_text())["rows"]
    queries, recalls = ([row for row in rows if row["case"].startswith(what)] for what in ("a query of", "recall@10"))
    assert len(queries) == (3 if own else 2) and len(recalls) == (1 if own else 3)
    for row in queries:
        assert row["unit"] == "us" and row["ratio"] == pytest.approx(50_000 / row["value"])
        assert row["met"] == (row["ratio"] >= row["target"])
    for row in recalls:
        assert row["met"] and row["value"] >= 0.99 and row["target"] == 0.99
