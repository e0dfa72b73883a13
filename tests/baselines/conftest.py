"""A tiny BERT, and a store whose pairs can be told apart: each word of a title has its own direction in the patches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from bert_directory import TINY, bert_directory
from conftest import manifest_of

from fashionbert_fast.catalogue.product import Product
from fashionbert_fast.features.store import FeatureStore, StoreWriter

COLOURS = ["red", "blue", "green", "black", "white", "yellow", "pink", "brown"]
GARMENTS = ["shirt", "dress", "boots", "sandal", "jacket", "jeans", "scarf", "belt"]
MATERIALS = ["cotton", "leather", "silk", "wool"]


@pytest.fixture(scope="session")
def core(tmp_path_factory) -> Path:
    """A BERT directory of 32 hidden units and 2 layers, random weights."""
    return bert_directory(tmp_path_factory.mktemp("cores") / "bert", **TINY)


def write_planted(path: Path, *, shuffled: bool = False) -> FeatureStore:
    """8 x 8 x 4 products, "red cotton shirt", of one category. Of a photo's 4 patches the first three have the axis
    of colour, garment and material, the last is empty; noise on all. shuffled: photos of other products.
    """
    generator = np.random.default_rng(0)
    names = [(c, m, g) for c in range(8) for m in range(4) for g in range(8)]
    shown = generator.permutation(len(names)) if shuffled else np.arange(len(names))
    split = generator.choice(["train", "validation", "test"], len(names), p=[0.7, 0.15, 0.15])
    features_IPD = torch.from_numpy(generator.normal(0, 0.05, (len(names), 4, 24)).astype(np.float32))
    for row, of in enumerate(shown):
        c, m, g = names[of]
        for patch, direction in enumerate((c, 8 + g, 16 + m)):
            features_IPD[row, patch, direction] += 1
    products = [
        Product(str(1000 + row), f"{COLOURS[c]} {MATERIALS[m]} {GARMENTS[g]}", "things", "all", Path(f"{row}.jpg"),
                str(split[row]))
        for row, (c, m, g) in enumerate(names)
    ]  # fmt: skip
    with StoreWriter(path, patches=4, feature_size=24, dtype="float32") as writer:
        writer.append(products, features_IPD)
        writer.commit(manifest_of(2, 24))
    return FeatureStore.open(path)


@pytest.fixture(scope="session")
def planted(tmp_path_factory) -> FeatureStore:
    return write_planted(tmp_path_factory.mktemp("planted") / "store")


@pytest.fixture(scope="session")
def unpaired(tmp_path_factory) -> FeatureStore:
    """The same with the photos of other products: nothing can be learned from it."""
    return write_planted(tmp_path_factory.mktemp("unpaired") / "store", shuffled=True)


def recall_at_1(system, store: FeatureStore) -> tuple[float, float, int]:
    """R@1 on the test split, image to text and text to image, and how many candidates there were."""
    from fashionbert_fast.baselines.system import Scorer
    from fashionbert_fast.evaluation import evaluate

    result = evaluate(store, store.rows("test"), Scorer(system, store).score)
    return result["image_to_text"]["R@1"], result["text_to_image"]["R@1"], result["candidates"]
