"""Mean and deviation of features: those of numpy, over training rows and all of their views, with large means too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import manifest_of

from fashionbert_fast.catalogue.product import Product
from fashionbert_fast.errors import InputError
from fashionbert_fast.features.store import FeatureStore, Manifest, StoreWriter

SPLITS = ["train", "validation", "train", "test", "train", "train"]
P, D = 4, 6


def write(path: Path, features: torch.Tensor, splits: list[str] = SPLITS, **options) -> FeatureStore:
    listed = [Product(str(i), f"t{i}", "", "", Path(f"{i}.jpg"), split) for i, split in enumerate(splits)]
    with StoreWriter(path, patches=P, feature_size=D, **options) as writer:
        writer.append(listed, features)
        writer.commit(manifest_of(2, D))
    return FeatureStore.open(path)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("views", [1, 3])
def test_statistics_are_numpys_over_training_rows(tmp_path, dtype, views):
    shape = (6, P, D) if views == 1 else (6, views, P, D)
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.arange(6) + 3
    features[..., 5] = 1000 + features[..., 5] / 1000  # a large mean, of a small deviation
    store = write(tmp_path / "s", features, dtype=dtype, views=views)
    kept = features.to(getattr(torch, dtype)).double().numpy()
    trained_RD = kept[[row for row, split in enumerate(SPLITS) if split == "train"]].reshape(-1, D)
    found = store.manifest.statistics
    np.testing.assert_allclose(found["mean"], trained_RD.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found["std"], trained_RD.std(0), rtol=1e-5, atol=1e-12)
    assert found["std"][0] == 0.0  # 3 everywhere
    assert all(number == float(f"{number:.6g}") for number in found["mean"] + found["std"])


def test_a_store_with_nothing_to_train_on_has_none(tmp_path):
    assert write(tmp_path / "s", torch.randn(6, P, D), ["test"] * 6).manifest.statistics == {}


def test_statistics_are_of_the_store_and_not_of_the_features():
    plain, known = manifest_of(2, D), manifest_of(2, D)
    known.statistics = {"mean": [0.0] * D, "std": [1.0] * D}
    assert known.fingerprint == plain.fingerprint
    old = plain.to_dict()
    del old["statistics"], old["views"], old["test"]
    assert (Manifest.from_dict(old).statistics, Manifest.from_dict(old).views) == ({}, 1)
    assert Manifest.from_dict(known.to_dict()).statistics == known.statistics


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({"mean": [0.0] * D}, "statistics.std is no list of 6 numbers"),
        ({"mean": [0.0] * 5, "std": [1.0] * D}, "statistics.mean is no list of 6 numbers"),
        ({"mean": [0.0] * D, "std": [1.0] * 5 + [-1.0]}, "statistics.std holds what it cannot"),
        ({"mean": [float("nan")] * D, "std": [1.0] * D}, "statistics.mean holds what it cannot"),
        ({"mean": ["0"] * D, "std": [1.0] * D}, "statistics.mean holds what it cannot"),
    ],
)
def test_what_cannot_be_statistics(statistics, message):
    with pytest.raises(ValueError, match=message):
        Manifest.from_dict(manifest_of(2, D).to_dict() | {"statistics": statistics})


def test_a_file_that_is_cut_while_it_is_read_is_an_input_error(tmp_path):
    """Where the disk fails between writing and reading back."""
    with StoreWriter(tmp_path / "s", patches=P, feature_size=D) as writer:
        writer.append([Product("0", "t", "", "", Path("0.jpg"), "train")], torch.zeros(1, P, D))
        writer.file.flush()
        (writer.partial / "features.bin").unlink()
        with pytest.raises(InputError, match="s: cannot be written"):
            writer.commit(manifest_of(2, D))
