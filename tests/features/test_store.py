"""The store: what is written is what is read, half stores never appear, damaged ones are named."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from training import ENVIRONMENT

from fashionbert_fast.catalogue.product import Problems, Product
from fashionbert_fast.errors import InputError
from fashionbert_fast.features import store as store_module
from fashionbert_fast.features.store import FeatureStore, Manifest, StoreWriter, require_same_features

PATCHES, FEATURES = 4, 3


def a_manifest(**changes) -> Manifest:
    fields = {
        "grid": 2,
        "resize": {"image_pixels": 16, "patch_pixels": 8, "interpolation": "bilinear"},
        "encoder": {"name": "toy", "architecture": "toy", "pooling": "mean", "weights_sha256": "0" * 64,
                    "feature_size": FEATURES, "trained": False},
        "normalisation": {"mean": [0.5] * 3, "std": [0.25] * 3},
    }  # fmt: skip
    return Manifest(**(fields | changes))


def some_products(count: int) -> list[Product]:
    splits = ["train", "validation", "train"]
    return [Product(f"p{i}", f"Tïtle {i}", "Tops", "Tees", Path(f"{i}.jpg"), splits[i % 3]) for i in range(count)]


def write(out: Path, count: int = 7, dtype: str = "bfloat16", overwrite: bool = False, fill: float | None = None):
    features_NPD = torch.randn(count, PATCHES, FEATURES, generator=torch.Generator().manual_seed(0))
    if fill is not None:
        features_NPD.fill_(fill)
    problems = Problems()
    problems.add("styles.csv", 9, "empty title", "no title", id="x")
    products = some_products(count)
    with StoreWriter(out, patches=PATCHES, feature_size=FEATURES, dtype=dtype, overwrite=overwrite) as writer:
        writer.append(products[:4], features_NPD[:4])
        writer.append(products[4:], features_NPD[4:])
        writer.commit(a_manifest(), problems)
    return features_NPD


@pytest.fixture
def made(tmp_path) -> Path:
    write(tmp_path / "store")
    return tmp_path / "store"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_round_trip(tmp_path, dtype):
    features_NPD = write(tmp_path / "s", dtype=dtype)
    store = FeatureStore.open(tmp_path / "s")
    assert len(store) == 7 and store.manifest.patches == PATCHES and store.manifest.feature_size == FEATURES
    assert store.titles[2] == "Tïtle 2" and store.ids[6] == "p6" and store.images[1] == "1.jpg"
    assert (store.categories[0], store.subcategories[0]) == ("Tops", "Tees")
    got = store.features(store.rows(None))
    assert got.dtype == getattr(torch, dtype)
    assert torch.equal(got, features_NPD.to(got.dtype))


def test_rows_and_gathering(made):
    store = FeatureStore.open(made)
    assert store.rows("validation").tolist() == [1, 4] and store.rows("validation").dtype == np.int64
    assert store.rows("test").tolist() == []
    everything = store.features(store.rows(None))
    for rows in ([5, 0, 0], np.array([5, 0, 0]), torch.tensor([5, 0, 0])):
        assert torch.equal(store.features(rows), everything[[5, 0, 0]])
    assert store.features([]).shape == (0, PATCHES, FEATURES)
    with pytest.raises(IndexError):
        store.features([7])
    store.features([0]).zero_()  # the caller's own memory: the file is as it was
    assert torch.equal(store.features([0]), everything[[0]])


def test_pickling_opens_the_file_again(made):
    store = FeatureStore.open(made)
    pickled = pickle.dumps(store)
    assert len(pickled) < 500
    assert torch.equal(pickle.loads(pickled).features([3]), store.features([3]))


def test_manifest_counts(made):
    value = json.loads((made / "manifest.json").read_text())
    assert value["products"] == 7 and value["splits"] == {"train": 5, "validation": 2}
    assert value["problems"] == {"empty title": 1} and value["dtype"] == "bfloat16"
    assert value["fingerprint"] == a_manifest().fingerprint and len(value["fingerprint"]) == 64
    assert json.loads((made / "problems.jsonl").read_text())["row"] == 9
    assert sorted(p.name for p in made.iterdir()) == [
        "features.bin",
        "manifest.json",
        "problems.jsonl",
        "products.parquet",
    ]


CHANGES = {
    "grid": {"grid": 4},
    "resize.patch_pixels": {"resize": {"image_pixels": 16, "patch_pixels": 16, "interpolation": "bilinear"}},
    "encoder.weights_sha256": {"encoder": a_manifest().encoder | {"weights_sha256": "1" * 64, "name": "other"}},
    "normalisation.mean": {"normalisation": {"mean": [0.0] * 3, "std": [0.25] * 3}},
    "normalisation.std": {"normalisation": a_manifest().normalisation | {"std": [0.75] * 3}},
    "resize.interpolation": {"resize": a_manifest().resize | {"interpolation": "nearest"}},
    "encoder.architecture": {"encoder": a_manifest().encoder | {"architecture": "another"}},
    "encoder.pooling": {"encoder": a_manifest().encoder | {"pooling": "cls"}},
    "patching": {"patching": "map"},
}


@pytest.mark.parametrize("field", CHANGES)
def test_features_that_must_not_be_mixed(field):
    ours, other = a_manifest(), a_manifest(**CHANGES[field])
    assert ours.fingerprint != other.fingerprint
    with pytest.raises(InputError, match=rf"run and store: their patch features differ in {field} \("):
        require_same_features(ours.to_dict(), other, "run and store")


def test_what_may_differ():
    other = a_manifest(dtype="float32", source="elsewhere", seed=3, created="later", versions={"torch": "9"})
    other.encoder = other.encoder | {"name": "the same weights from a directory"}
    require_same_features(a_manifest(), other, "two stores")
    assert a_manifest().fingerprint == other.fingerprint


def test_a_manifest_from_before_there_was_patching_is_of_separate_patches():
    """By its fingerprint of then, so that old stores and checkpoints still open and match."""
    old = a_manifest().to_dict()
    del old["patching"]
    fields = {name: part for name, part in old.items() if name in ("grid", "resize", "encoder", "normalisation")}
    of_encoder = ("architecture", "feature_size", "pooling", "weights_sha256")
    parts = {"grid": 2} | {
        f"{section}.{name}": part
        for section in ("resize", "encoder", "normalisation")
        for name, part in fields[section].items()
        if section != "encoder" or name in of_encoder
    }
    assert old["fingerprint"] == hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    read = Manifest.from_dict(old)
    assert read.patching == "separate" and read.fingerprint == old["fingerprint"]
    require_same_features(old, a_manifest(), "run and store")
    with pytest.raises(InputError, match=r"their patch features differ in patching \(separate against map\)"):
        require_same_features(old, a_manifest(patching="map"), "run and store")
    with pytest.raises(ValueError, match="patching 'maps' is unknown"):
        Manifest.from_dict(old | {"patching": "maps"})


def without_hashes(store: Path) -> Path:
    """``store`` as it was written before there were hashes, groups and photos' hashes."""
    manifest = json.loads((store / "manifest.json").read_text())
    for name in ("manifest_sha256", "content_sha256", "files", "leaks", "split_by", "patching", "views", "statistics"):
        del manifest[name]
    (store / "manifest.json").write_text(json.dumps(manifest))
    table = pq.read_table(store / "products.parquet")
    pq.write_table(table.drop_columns(["features_crc32", "group", "image_hash"]), store / "products.parquet")
    return store


def test_a_store_without_hashes_opens_as_before(made):
    before = FeatureStore.open(made)
    store = FeatureStore.open(without_hashes(made))
    assert (store.titles, store.splits, store.manifest.content_sha256) == (before.titles, before.splits, "")
    assert store.groups == [""] * 7 == store.image_hashes and store.crc32_N is None
    assert torch.equal(store.features(store.rows()), before.features(before.rows()))
    assert store.verify() == []


def damage(store: Path, how: str) -> None:
    manifest = store / "manifest.json"
    if how == "absent":
        shutil.rmtree(store)
    elif how == "file":
        shutil.rmtree(store)
        store.write_text("")
    elif how == "no manifest":
        manifest.unlink()
    elif how == "broken manifest":
        manifest.write_text("{")
    elif how == "other manifest":
        manifest.write_text('{"step": 3}')
    elif how == "version":
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format_version": 9}))
    elif how == "lacking":
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"resize": {}}))
    elif how == "edited":
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"grid": 8}))
    elif how == "truncated":
        (store / "features.bin").write_bytes((store / "features.bin").read_bytes()[:-2])
    elif how == "too long":
        (store / "features.bin").write_bytes((store / "features.bin").read_bytes() + b"\0\0")
    elif how == "no features":
        (store / "features.bin").unlink()
    elif how == "products":
        shutil.copy(store.parent / "longer" / "products.parquet", store / "products.parquet")
    elif how == "no products":
        (store / "products.parquet").write_bytes(b"")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("absent", "no such feature store; make one with: fashionbert prepare SOURCE --out"),
        ("file", "is not a directory"),
        ("no manifest", r"is not a feature store: no manifest\.json; make one with"),
        ("broken manifest", r"manifest\.json: cannot be read as JSON \(Expecting property name"),
        ("other manifest", r"manifest\.json: is not a feature store's"),
        ("version", "has format 9, this version reads 1"),
        ("lacking", r"lacks resize\.image_pixels"),
        ("edited", "was edited: its fingerprint does not belong to its fields"),
        ("truncated", r"features\.bin: 166 bytes, where \(7, 4, 3\) bfloat16 take 168"),
        ("too long", r"features\.bin: 170 bytes, where \(7, 4, 3\) bfloat16 take 168"),
        ("no features", r"features\.bin: cannot be read \(No such file"),
        ("products", r"products\.parquet: cannot be read \(8 products, the manifest has 7\)"),
        ("no products", r"products\.parquet: cannot be read"),
    ],
)
def test_damaged_stores(made, how, message):
    """What shows without hashes; with them: `test_integrity`."""
    write(made.parent / "longer", count=8)
    without_hashes(made)
    damage(made, how)
    with pytest.raises(InputError, match=message) as raised:
        FeatureStore.open(made)
    assert str(made) in str(raised.value) and "\n" not in str(raised.value)


def test_an_interrupted_writer_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), StoreWriter(tmp_path / "s", patches=4, feature_size=3) as writer:
        writer.append(some_products(2), torch.zeros(2, 4, 3))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_killed_writers_go(tmp_path):
    with StoreWriter(tmp_path / "s", patches=4, feature_size=3) as writer:
        dead = writer.partial.with_name(writer.partial.name.replace(f".{store_module.os.getpid()}.", ".99999999."))
        shutil.copytree(writer.partial, dead)
        with StoreWriter(tmp_path / "t", patches=4, feature_size=3):
            assert dead.exists()  # of another store
        store_module._remove_leftovers(tmp_path / "s")
        assert not dead.exists() and writer.partial.exists()


class Reader(torch.utils.data.Dataset):
    """What a loader's process does with a store."""

    def __init__(self, store: FeatureStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.store.features([row])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_store_that_is_cut_while_in_use_is_told_in_a_line(made, workers):
    """Memory-mapped, it ended the process by SIGBUS, without a word."""
    loader = torch.utils.data.DataLoader(Reader(FeatureStore.open(made)), batch_size=None, num_workers=workers)
    with (made / "features.bin").open("r+b") as file:
        file.truncate(100)  # of 7 rows of 24 bytes
    rows = iter(loader)
    assert len([next(rows) for _ in range(4)]) == 4
    with pytest.raises(InputError) as raised:
        next(rows)
    assert str(raised.value) == (f"{made}/features.bin: ends within row 4 (id p4): it was cut while in use; prepare "
                                 "the store again with --overwrite")  # fmt: skip


def test_one_prepare_at_a_time_writes_a_store(tmp_path):
    """A killed one holds nothing, and what it left goes."""
    hold = (
        "import sys, time; from fashionbert_fast.features.store import StoreWriter\n"
        "with StoreWriter(sys.argv[1], patches=4, feature_size=3): print('writing', flush=True); time.sleep(60)"
    )
    first = subprocess.Popen([sys.executable, "-c", hold, tmp_path / "s"], env=ENVIRONMENT, stdout=subprocess.PIPE)
    assert first.stdout is not None and first.stdout.readline() == b"writing\n"
    left = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(InputError, match=rf"s: another prepare is writing it \(process {first.pid} on .*\); wait for"):
        write(tmp_path / "s")
    assert sorted(path.name for path in tmp_path.iterdir()) == left  # the first one's, which goes on
    write(tmp_path / "t")
    first.kill()
    first.communicate()
    write(tmp_path / "s")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "t"]


def test_a_store_that_a_killed_writer_had_set_aside_comes_back(made):
    made.rename(made.with_name(f".store.{socket.gethostname()}.99999999.old"))
    with pytest.raises(InputError, match="store: exists; add --overwrite"):
        write(made)
    assert len(FeatureStore.open(made)) == 7
    assert list(made.parent.iterdir()) == [made]


def test_overwriting(made):
    with pytest.raises(InputError, match="exists; add --overwrite"):
        write(made)
    write(made, fill=2.0, overwrite=True)
    assert FeatureStore.open(made).features([0]).unique().tolist() == [2.0]
    assert [p.name for p in made.parent.iterdir()] == ["store"]
    other = made.parent / "photos"
    other.mkdir()
    write(other)  # an empty directory is as good as none
    (made.parent / "mine").mkdir()
    (made.parent / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="exists and is not a feature store; choose another"):
        write(made.parent / "mine", overwrite=True)


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written .*file: Not a directory"):
        write(tmp_path / "file" / "store")
    with pytest.raises(InputError, match="cannot be written"):
        write(Path("/proc/nowhere/store"))
    with pytest.raises(InputError, match=r"needs 1000000000\.0 GB, the disk has"):
        StoreWriter(tmp_path / "s", patches=1, feature_size=1, dtype="float32", expected=250_000_000 * 10**9)


def test_features_of_the_wrong_shape(tmp_path):
    with (
        StoreWriter(tmp_path / "s", patches=4, feature_size=3) as writer,
        pytest.raises(ValueError, match="not \\(2, 4, 3\\)"),
    ):
        writer.append(some_products(2), torch.zeros(2, 4, 5))
