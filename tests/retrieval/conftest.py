"""An index of the tests' shop, as `fashionbert embed` and `fashionbert index` leave it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fashionbert_fast.retrieval.embed import embed_store
from fashionbert_fast.retrieval.index import build_index


@pytest.fixture(scope="session")
def vectors(shop, tmp_path_factory) -> Path:
    """VECTORS of the twelve products of ``shop``; nobody writes to it."""
    out = tmp_path_factory.mktemp("vectors") / "shop"
    embed_store(shop / "runs" / "shop", shop / "stores" / "shop", out, device="cpu")
    return out


@pytest.fixture(scope="session")
def index(vectors) -> Path:
    """INDEX of ``vectors``; nobody writes to it."""
    out = vectors.parent / "index"
    build_index(vectors, out)
    return out
