"""Hashes: whatever of a store is not what was written is found, at opening where that is cheap, else by `verify`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from fashionbert_fast.catalogue.product import Problems, Product
from fashionbert_fast.errors import InputError
from fashionbert_fast.features.integrity import ROWS_AT_OPENING, is_finite
from fashionbert_fast.features.store import FeatureStore, Manifest, StoreWriter
from fashionbert_fast.files import seal

COUNT, PATCHES, FEATURES = 40, 4, 3
UNREAD_ROW = 2  # not among those that opening looks at
PINNED = "e37c122b1c3b4ef1e73d12dab594805a225794ff6c2a79f5185f8f67ee5e1079"  # of the store that `write` makes


def write(
    out: Path, *, seed: int = 0, title: str = "Hat", folder: str = "photos", split: str = "train", queries: str = ""
) -> Path:
    features_NPD = torch.randn(COUNT, PATCHES, FEATURES, generator=torch.Generator().manual_seed(seed))
    products = [Product(f"p{i}", f"{title} {i}", "Tops", "Tees", Path(folder, f"{i}.jpg"), split, queries=queries)
                for i in range(COUNT)]  # fmt: skip
    manifest = Manifest(
        grid=2,
        resize={"image_pixels": 16, "patch_pixels": 8, "interpolation": "bilinear"},
        encoder={"name": "toy", "architecture": "toy", "pooling": "mean", "weights_sha256": "0" * 64,
                 "feature_size": FEATURES, "trained": False},
        normalisation={"mean": [0.5] * 3, "std": [0.25] * 3},
    )  # fmt: skip
    problems = Problems()
    problems.add("styles.csv", 9, "empty title", "no title", id="x")
    with StoreWriter(out, patches=PATCHES, feature_size=FEATURES) as writer:
        writer.append(products[:7], features_NPD[:7])
        writer.append(products[7:], features_NPD[7:])
        writer.commit(manifest, problems)
    return out


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("stores") / "store")


@pytest.fixture
def made(pristine, tmp_path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "store"))


def is_found(store: Path, at_opening: bool) -> bool:
    try:
        opened = FeatureStore.open(store)
        return not at_opening and bool(opened.verify())
    except InputError as error:
        assert "\n" not in str(error) and str(store) in str(error)
        return True


def test_an_untouched_store_is_whole(made):
    assert FeatureStore.open(made).verify() == []


@pytest.mark.parametrize("name", ["manifest.json", "products.parquet", "problems.jsonl", "features.bin"])
def test_a_flipped_bit_anywhere_is_found(made, name):
    """Bits spread over the whole file, or all of a small one; each named by its file in one line. At opening, but for
    the features, which are what makes a store large."""
    whole = (made / name).read_bytes()
    generator = np.random.default_rng(0)
    for bit in generator.choice(8 * len(whole), size=min(150, 8 * len(whole)), replace=False).tolist():
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        (made / name).write_bytes(flipped)
        assert is_found(made, at_opening=name != "features.bin"), f"bit {bit} of {name}"


@pytest.mark.parametrize("name", ["manifest.json", "products.parquet", "problems.jsonl", "features.bin"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.999])
def test_a_truncated_file_is_found(made, name, kept):
    whole = (made / name).read_bytes()
    (made / name).write_bytes(whole[: int(kept * len(whole))])
    assert is_found(made, at_opening=True)


@pytest.mark.parametrize("name", ["manifest.json", "products.parquet", "problems.jsonl", "features.bin"])
@pytest.mark.parametrize("instead", [None, "folder", "pipe", "link to a pipe"])
def test_a_missing_file_and_what_is_none_are_found(made, name, instead):
    (made / name).unlink()
    if instead == "folder":
        (made / name).mkdir()
    elif instead is not None:
        os.mkfifo(made / "pipe" if instead.startswith("link") else made / name)  # which would be waited for
    if instead == "link to a pipe":
        (made / name).symlink_to("pipe")
    assert is_found(made, at_opening=True)


def test_damaged_rows_are_listed_with_their_ids(made):
    raw_NPD = np.memmap(made / "features.bin", dtype="<u2", mode="r+", shape=(COUNT, PATCHES, FEATURES))
    raw_NPD[UNREAD_ROW, 1, 1] ^= 1
    raw_NPD[UNREAD_ROW + 1, 0, 0] = 0x7FC0  # NaN in bfloat16
    raw_NPD.flush()
    store = FeatureStore.open(made)  # looks at others
    damages = store.verify()
    assert [(damage.row, damage.id) for damage in damages] == [(2, "p2"), (3, "p3")]
    assert str(damages[0]).startswith(f"{made}/features.bin: row 2 (id p2): its features do not match their checksum")


def test_opening_looks_at_rows_from_first_to_last(made):
    found = []
    for row in range(COUNT):
        raw_NPD = np.memmap(made / "features.bin", dtype="<u2", mode="r+", shape=(COUNT, PATCHES, FEATURES))
        raw_NPD[row, -1, -1] ^= 1
        raw_NPD.flush()
        try:
            FeatureStore.open(made)
        except InputError as error:
            assert f"features.bin: row {row} (id p{row})" in str(error) and "inspect" in str(error)
            found.append(row)
        raw_NPD[row, -1, -1] ^= 1
        raw_NPD.flush()
    assert len(found) == ROWS_AT_OPENING and found[0] == 0 and found[-1] == COUNT - 1 and UNREAD_ROW not in found


@pytest.mark.parametrize("row", [0, UNREAD_ROW])
@pytest.mark.parametrize("value", [0x7FC0, 0x7F80, 0xFF80])
def test_nan_and_infinity_are_found_without_hashes_too(made, row, value):
    raw_NPD = np.memmap(made / "features.bin", dtype="<u2", mode="r+", shape=(COUNT, PATCHES, FEATURES))
    raw_NPD[row, 2, 2] = value
    raw_NPD.flush()
    table = pq.read_table(made / "products.parquet").drop_columns(["features_crc32"])
    pq.write_table(table, made / "products.parquet")
    manifest = json.loads((made / "manifest.json").read_text())
    kept = {key: part for key, part in manifest.items() if key not in ("manifest_sha256", "content_sha256", "files")}
    (made / "manifest.json").write_text(json.dumps(kept))
    if row == 0:
        with pytest.raises(InputError, match=r"features\.bin: row 0 \(id p0\): its features hold NaN or infinity"):
            FeatureStore.open(made)
    else:
        assert [damage.id for damage in FeatureStore.open(made).verify()] == ["p2"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_what_is_finite(dtype):
    values = torch.tensor([[0.0, 1], [3e38, 1], [float("nan"), 0], [1, float("inf")], [-float("inf"), 1], [-2, 6e4]])
    rounded = values.to(getattr(torch, dtype))
    raw = rounded.view(torch.uint32 if dtype == "float32" else torch.uint16).numpy()
    assert is_finite(raw, dtype).tolist() == rounded.isfinite().all(1).tolist()
    assert is_finite(raw, dtype).tolist()[2:] == [False, False, False, True]


def test_the_index_of_another_store_is_found(made, tmp_path):
    other = write(tmp_path / "other", seed=1, title="Cap")
    shutil.copy(other / "products.parquet", made / "products.parquet")
    with pytest.raises(InputError, match=r"store/products\.parquet: .* of another store; prepare the store again"):
        FeatureStore.open(made)
    shutil.copy(other / "manifest.json", made / "manifest.json")  # now index and manifest belong together
    with pytest.raises(InputError, match=r"store/features\.bin: row 0 \(id p0\): its features do not match"):
        FeatureStore.open(made)


def test_an_edited_manifest_is_found_unless_it_is_sealed_again(made):
    manifest = json.loads((made / "manifest.json").read_text())
    (made / "manifest.json").write_text(json.dumps(manifest | {"seed": 5}))
    with pytest.raises(InputError, match=r"manifest\.json: was edited or is damaged: its manifest_sha256 does not"):
        FeatureStore.open(made)
    del manifest["manifest_sha256"]
    (made / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="its manifest_sha256 is not there"):
        FeatureStore.open(made)
    (made / "manifest.json").write_text(json.dumps(seal(manifest | {"content_sha256": "0" * 64})))
    assert [damage.row for damage in FeatureStore.open(made).verify()] == [-1]


def test_the_hash_of_the_content_is_that_of_what_is_learned_from(pristine, tmp_path):
    ours = FeatureStore.open(pristine).manifest.content_sha256
    same = write(tmp_path / "same", folder="elsewhere")
    assert FeatureStore.open(same).manifest.content_sha256 == ours and len(ours) == 64
    table = pq.read_table(same / "products.parquet")
    pq.write_table(table, same / "products.parquet", compression="gzip")  # other bytes, the same content
    assert is_found(same, at_opening=True)
    for changes in ({"seed": 1}, {"title": "Cap"}, {"split": "validation"}, {"queries": "hat"}):
        other = write(tmp_path / next(iter(changes)), **changes)
        assert FeatureStore.open(other).manifest.content_sha256 != ours


def test_a_store_without_queries_is_what_it_was_before_there_were_any(pristine, tmp_path):
    assert FeatureStore.open(pristine).manifest.content_sha256 == PINNED
    assert "queries" not in pq.read_schema(pristine / "products.parquet").names
    store = FeatureStore.open(write(tmp_path / "asked", queries="warm hat\nhat"))
    assert store.queries == ["warm hat\nhat"] * COUNT and not store.verify()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39])
def test_no_store_is_written_with_features_that_are_not_numbers(tmp_path, value):
    features_IPD = torch.zeros(2, PATCHES, FEATURES, dtype=torch.float64)
    features_IPD[1, 3, 2] = value
    products = [Product(f"p{i}", "Hat", "", "", Path("x.jpg"), "train") for i in range(2)]
    with (
        StoreWriter(tmp_path / "s", patches=PATCHES, feature_size=FEATURES) as writer,
        pytest.raises(ValueError, match="NaN or infinity in those of id p1"),
    ):
        writer.append(products, features_IPD)
