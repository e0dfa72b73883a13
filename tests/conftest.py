"""Shared fixtures: a small feature store with learnable structure, and skipping of GPU tests by name."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

COLOURS = ["red", "blue", "green", "black", "white", "yellow"]
GARMENTS = {"Topwear": ["shirt", "tee", "jacket"], "Footwear": ["sneaker", "boot", "sandal"]}


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=f"{item.name} needs a CUDA device"))


def manifest_of(grid: int, feature_size: int):
    """A manifest of features that a test makes up."""
    from fashionbert_fast.features.store import Manifest

    return Manifest(
        grid=grid,
        resize={"image_pixels": 64, "patch_pixels": 32, "interpolation": "bilinear"},
        encoder={"name": "test", "architecture": "test", "pooling": "mean", "weights_sha256": "0" * 64,
                 "feature_size": feature_size, "trained": False},
        normalisation={"mean": [0.5] * 3, "std": [0.5] * 3},
    )  # fmt: skip


def write_store(
    path: Path, products: int = 96, feature_size: int = 24, grid: int = 2, seed: int = 0, queries: bool = False,
    test: bool = False,
) -> Path:  # fmt: skip
    """A feature store whose patches carry the garment and the colour that the title names, plus noise.

    queries: two of three products have some, of their colour and garment, or of the garment alone. test: a fourth of
    them is of that split.
    """
    from fashionbert_fast.catalogue.product import Product
    from fashionbert_fast.features.store import StoreWriter

    generator = torch.Generator().manual_seed(seed)
    kinds = [(category, garment) for category, garments in GARMENTS.items() for garment in garments]
    colour_vectors = torch.randn(len(COLOURS), feature_size, generator=generator)
    kind_vectors = torch.randn(len(kinds), feature_size, generator=generator)
    listed, features = [], []
    for i in range(products):
        colour = int(torch.randint(len(COLOURS), (), generator=generator))
        category, garment = kinds[i % len(kinds)]
        title = f"{COLOURS[colour]} {garment} model {i % 10}" + (" with a long name" if i % 3 == 0 else "")
        split = "validation" if i % 8 == 7 else "test" if test and i % 4 == 1 else "train"
        asked = ("", f"{COLOURS[colour]} {garment}\n{garment} in {COLOURS[colour]}\n{garment}", f"nice {garment}")
        asked = asked[(i + i // 30) % 3] if queries else ""
        listed.append(Product(str(1000 + i), title, category, garment, Path(f"{i}.jpg"), split,
                              queries=asked))  # fmt: skip
        noise = torch.randn(grid * grid, feature_size, generator=generator) * 0.1
        features.append(colour_vectors[colour] + kind_vectors[i % len(kinds)] + noise)
    with StoreWriter(path, patches=grid * grid, feature_size=feature_size, dtype="float32") as writer:
        writer.append(listed, torch.stack(features))
        writer.commit(manifest_of(grid, feature_size))
    return path


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Models this small only lose time to threads waiting for one another."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def store_path(tmp_path_factory) -> Path:
    return write_store(tmp_path_factory.mktemp("stores") / "store")


@pytest.fixture(scope="session")
def asked_path(tmp_path_factory) -> Path:
    """The same with queries."""
    return write_store(tmp_path_factory.mktemp("stores") / "asked", queries=True)


@pytest.fixture(scope="session")
def store_and_titles(store_path, tmp_path_factory):
    """The store, opened, and its titles tokenised by a WordPiece trained on them."""
    from fashionbert_fast.data.titles import TokenizedTitles
    from fashionbert_fast.data.tokenizer import load_tokenizer, train_wordpiece
    from fashionbert_fast.features.store import FeatureStore

    store = FeatureStore.open(store_path)
    directory = tmp_path_factory.mktemp("tokenizer")
    train_wordpiece(store.titles, 300, directory)
    return store, TokenizedTitles(store.titles, load_tokenizer(directory), 16)


@pytest.fixture(scope="session")
def shop(tmp_path_factory) -> Path:
    """A folder with shop.csv, photos/, stores/shop and runs/shop (`shop.write_shop`); nobody writes to it."""
    from shop import write_shop

    return write_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="session")
def dist(tmp_path_factory) -> Path:
    """A folder with the sdist, and the wheel built from it: minutes, of which only slow tests ask."""
    from outside import run_outside

    out, root = tmp_path_factory.mktemp("dist"), Path(__file__).parent.parent
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    run_outside(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, root, cwd=root, PATH=path)
    return out


@pytest.fixture(scope="session")
def wheel(dist) -> Path:
    (wheel,) = dist.glob("*.whl")
    return wheel


TINY_MODEL = ["model.hidden_size=32", "model.heads=2", "model.layers=2", "model.intermediate_size=64",
              "model.vocab_size=300", "model.hidden_dropout=0", "model.attention_dropout=0",
              "model.patch_dropout=0"]  # fmt: skip


@pytest.fixture
def poisoned_memory():
    """Uninitialised memory reads as NaN, so that an operator which leaves some of its output unwritten is found out."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]
