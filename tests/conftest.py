"""Shared fixtures: a small feature store with learnable structure, and skipping of GPU tests by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

COLOURS = ["red", "blue", "green", "black", "white", "yellow"]
GARMENTS = {"Topwear": ["shirt", "tee", "jacket"], "Footwear": ["sneaker", "boot", "sandal"]}


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason=f"{item.name} needs a CUDA device"))


def write_store(path: Path, products: int = 96, feature_size: int = 24, grid: int = 2, seed: int = 0) -> Path:
    """A feature store whose patches carry the garment and the colour that the title names, plus noise."""
    from fashionbert_fast.data.store import StoreWriter  # noqa: F401  (documents where real stores are written)

    raise NotImplementedError
