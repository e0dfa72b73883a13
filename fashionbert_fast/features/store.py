"""The feature store: patch features of a catalogue, ready to train on.

A directory of four files, written under a temporary name and renamed when complete:

    manifest.json      what the features are and how they were made (`Manifest`)
    products.parquet   id, title, category, subcategory, split, image, group, image_hash, where there are any the
                       queries, and a checksum of the row's features; row n belongs to image n
    features.bin       [N, P, D] in the manifest's dtype, raw, little endian; of V views of each photo [N, V, P, D]
    problems.jsonl     what was left out of the catalogue and why

Shapes: N products, n rows asked for, I images, V views, P = grid * grid patches, D feature.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import socket
import sys
import tempfile
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from fashionbert_fast.catalogue.parquet import open_index, texts
from fashionbert_fast.catalogue.product import Problems, Product
from fashionbert_fast.catalogue.twins import leaks, twins
from fashionbert_fast.errors import InputError
from fashionbert_fast.features import integrity
from fashionbert_fast.features.manifest import DTYPES, FORMAT_VERSION, Manifest, require_same_features
from fashionbert_fast.features.moments import feature_statistics
from fashionbert_fast.files import check_file, fsync, fsync_all, read_json, seal, sole_owner

_UNSIGNED = {"bfloat16": torch.uint16, "float16": torch.uint16, "float32": torch.uint32}
_RAW = {"bfloat16": np.dtype("<u2"), "float16": np.dtype("<u2"), "float32": np.dtype("<u4")}
COLUMNS = ("id", "title", "category", "subcategory", "split", "image")
PARTIAL, ASIDE = ".partial", ".old"  # of a store that is being written, and of the one that it replaces
QUERIES = "queries"  # a query a line (`catalogue.queries.listed`); no column where no product has one
LATER_COLUMNS = ("group", "image_hash", QUERIES)  # empty where a store was written before they were
Rows = np.ndarray | Sequence[int] | torch.Tensor
__all__ = ["FeatureStore", "Manifest", "StoreWriter", "require_same_features"]


class FeatureStore:
    """Reads a store. Opening is free of its size, processes share the kernel's copy of what they read."""

    def __init__(
        self, path: Path, manifest: Manifest, columns: Mapping[str, list[str]], crc32_N: np.ndarray | None
    ) -> None:
        self.path, self.manifest, self.columns = path, manifest, columns
        self.ids, self.titles = columns["id"], columns["title"]
        self.categories, self.subcategories = columns["category"], columns["subcategory"]
        self.splits, self.images = columns["split"], columns["image"]
        self.groups, self.image_hashes = columns["group"], columns["image_hash"]
        self.queries = columns[QUERIES]
        self.crc32_N = crc32_N  # uint32, of each row's bytes; None where the store was written without hashes
        self._twin_N: np.ndarray | None = None
        self._descriptor = _open_features(path, manifest)
        weakref.finalize(self, os.close, self._descriptor)

    @classmethod
    def open(cls, path: Path | str, *, check_rows: bool = True) -> FeatureStore:
        """Open and check. InputError, in one line, on anything that is not a whole, unchanged store of this format.

        check_rows: also read a handful of rows, against their checksums (see `integrity`); `verify` reads all.
        """
        path = Path(path)
        manifest = _read_manifest(path)
        columns, crc32_N = _read_products(path, manifest)
        if difference := integrity.file_difference(path / "problems.jsonl", manifest):  # which nothing else reads
            raise InputError(f"{path}/problems.jsonl: {difference}; {integrity.AGAIN}")
        store = cls(path, manifest, columns, crc32_N)
        if check_rows:
            integrity.check_some_rows(store)
        return store

    def verify(self) -> list[integrity.Damage]:
        """Everything that is not as it was written; reads the whole store."""
        return integrity.verify(self)

    def __reduce__(self):
        return FeatureStore.open, (self.path,)  # another process opens the file itself

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, split: str | None = None) -> np.ndarray:
        """int64 rows of a split ("train", "validation", "test"); None: all. Empty where there are none."""
        if split is None:
            return np.arange(len(self), dtype=np.int64)
        return np.flatnonzero(np.asarray(self.splits, dtype=object) == split).astype(np.int64)

    @property
    def twin_N(self) -> np.ndarray:
        """int64 (N,): equal for rows that share a group, a title or a photo, directly or through others (`twins`)."""
        if self._twin_N is None:
            self._twin_N = twins(self.groups, self.titles, self.image_hashes)
        return self._twin_N

    def features(self, rows: Rows, views: Rows | None = None) -> torch.Tensor:
        """Features of the given rows [n, P, D], in the store's dtype, in new memory: one copy.

        views: which view of each row's photo, int64 (n,); None: the photo as it is, view 0. IndexError beyond the last
        row or view; InputError where the file cannot be read or has become shorter meanwhile.
        """
        row_n = np.asarray(rows, dtype=np.int64)
        view_n = np.zeros_like(row_n) if views is None else np.asarray(views, dtype=np.int64)
        for name, values_n, end in (("rows", row_n, len(self)), ("views", view_n, self.manifest.views)):
            if len(values_n) and not (values_n.min() >= 0 and values_n.max() < end):
                raise IndexError(f"{name}: {values_n.min()} to {values_n.max()}, of {end}")
        raw_nPD = self._empty(len(row_n))
        places_n = row_n * self.manifest.views + view_n
        for raw_PD, row, place in zip(raw_nPD, row_n.tolist(), places_n.tolist(), strict=True):
            self._read(raw_PD, row, place * raw_PD.nbytes)
        return torch.from_numpy(raw_nPD).view(DTYPES[self.manifest.dtype])

    def raw(self, row: int) -> np.ndarray:
        """All of a row [V, P, D] as it is stored: uint16 holds bfloat16 and float16, uint32 holds float32."""
        raw_VPD = self._empty(self.manifest.views)
        self._read(raw_VPD, row, row * raw_VPD.nbytes)
        return raw_VPD

    def _empty(self, count: int) -> np.ndarray:
        m = self.manifest
        return np.empty((count, m.patches, m.feature_size), _RAW[m.dtype])

    def _read(self, target: np.ndarray, row: int, offset: int) -> None:
        """Fill ``target`` from ``offset`` on, which lies in ``row``.

        Read, not mapped: a mapped file that somebody cuts, or a disk that fails, would end the process by SIGBUS.
        """
        try:
            read = os.preadv(self._descriptor, [target], offset)
        except OSError as error:
            raise InputError(f"{self.path}/features.bin: row {row} cannot be read ({error.strerror}); check the "
                             "disk") from error  # fmt: skip
        if read < target.nbytes:
            raise InputError(f"{self.path}/features.bin: ends within row {row} (id {self.ids[row]}): it was cut "
                             f"while in use; {integrity.AGAIN}")  # fmt: skip


def _make_one(path: Path) -> str:
    return f"make one with: fashionbert prepare SOURCE --out {path}"


def _read_manifest(path: Path) -> Manifest:
    if not path.is_dir():
        found = "is not a directory" if path.exists() else "no such feature store"
        raise InputError(f"{path}: {found}; {_make_one(path)}")
    if not (path / "manifest.json").is_file():
        raise InputError(f"{path}: is not a feature store: no manifest.json; {_make_one(path)}")
    value = read_json(path / "manifest.json", integrity.AGAIN)
    try:
        if "format_version" not in value:
            raise ValueError("is not a feature store's")
        if value["format_version"] != FORMAT_VERSION:
            raise ValueError(f"has format {value['format_version']}, this version reads {FORMAT_VERSION}")
        integrity.check_seal(value)
        return Manifest.from_dict(value)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}/manifest.json: {error}; {integrity.AGAIN}") from error


def _read_products(path: Path, manifest: Manifest) -> tuple[dict[str, list[str]], np.ndarray | None]:
    """The columns of text, and the checksums of the features."""
    file = path / "products.parquet"
    if difference := integrity.file_difference(file, manifest):
        raise InputError(f"{file}: {difference}; {integrity.AGAIN}")
    try:
        with open_index(file) as parquet:
            names = parquet.schema_arrow.names
            missing = [name for name in COLUMNS if name not in names]
            if missing:
                raise pa.ArrowException(f"no column {missing[0]}")
            if parquet.metadata.num_rows != manifest.products:
                raise pa.ArrowException(f"{parquet.metadata.num_rows} products, the manifest has {manifest.products}")
            known = [name for name in (*COLUMNS, *LATER_COLUMNS) if name in names]
            columns = {name: [""] * manifest.products for name in LATER_COLUMNS}
            columns |= {name: texts(parquet, name) for name in known}
            short = [name for name in known if len(columns[name]) != manifest.products]
            if short:
                raise pa.ArrowException(f"column {short[0]} has {len(columns[short[0]])} rows")
            crc32_N = _crc32(parquet) if integrity.CRC_COLUMN in names else None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0][:150]
        raise InputError(f"{file}: cannot be read ({reason}); {integrity.AGAIN}") from error
    return columns, crc32_N


def _crc32(parquet: pq.ParquetFile) -> np.ndarray:
    column = parquet.read([integrity.CRC_COLUMN])[0]
    if column.type != pa.uint32() or column.null_count:
        raise pa.ArrowException(f"column {integrity.CRC_COLUMN} is of {column.type}, not of checksums")
    return column.to_numpy()


def _open_features(path: Path, manifest: Manifest) -> int:
    """A descriptor of features.bin, which is as long as the manifest says."""
    row_shape = _row_shape(manifest.views, manifest.patches, manifest.feature_size)
    file, shape = path / "features.bin", (manifest.products, *row_shape)
    expected = math.prod(shape) * _RAW[manifest.dtype].itemsize
    check_file(file, integrity.AGAIN, sys.maxsize)
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error
    size = os.fstat(descriptor).st_size
    if size == expected:
        return descriptor
    os.close(descriptor)
    raise InputError(
        f"{file}: {size} bytes, where {shape} {manifest.dtype} take {expected}; the store is damaged, {integrity.AGAIN}"
    )


def _row_shape(views: int, patches: int, feature_size: int) -> tuple[int, ...]:
    """Of what one product has: (P, D), of several views (V, P, D)."""
    return (patches, feature_size) if views == 1 else (views, patches, feature_size)


class StoreWriter:
    """Writes a store under a temporary sibling name; `commit` renames it into place, leaving early removes it.

        with StoreWriter(out, patches=64, feature_size=1280) as writer:
            writer.append(products, features_IPD)   # as often as needed, in order
            writer.commit(manifest, problems)       # fills in products, splits, statistics, ...

    ``overwrite`` replaces an existing store (nothing else) at the moment of `commit`. InputError when ``out`` exists
    without it, is no store, or cannot be written, or when ``expected`` products would not fit on the disk.
    """

    def __init__(
        self, out: Path | str, *, patches: int, feature_size: int, dtype: str = "bfloat16", overwrite: bool = False,
        expected: int = 0, views: int = 1,
    ) -> None:  # fmt: skip
        self.out, self.dtype, self.views = Path(out), dtype, views
        self.row_shape = _row_shape(views, patches, feature_size)
        self.columns: dict[str, list[str]] = {name: [] for name in (*COLUMNS, *LATER_COLUMNS)}
        self.crc32: list[int] = []
        check_out(self.out, overwrite)
        _check_space(self.out, expected * math.prod(self.row_shape) * DTYPES[dtype].itemsize)
        self.partial = self.out.with_name(f".{self.out.name}.{socket.gethostname()}.{os.getpid()}{PARTIAL}")
        what, remedy = f"{self.out}: another prepare is writing it", "wait for it, stop it, or choose another --out"
        with contextlib.ExitStack() as until_begun:
            try:
                self.out.parent.mkdir(parents=True, exist_ok=True)
                until_begun.enter_context(sole_owner(self.out.with_name(f".{self.out.name}.lock"), what, remedy))
                _remove_leftovers(self.out)
                check_out(self.out, overwrite)  # one may have come back
                self.partial.mkdir()
                self.file = (self.partial / "features.bin").open("wb")
            except OSError as error:
                raise InputError(f"{self.out}: cannot be written ({error.strerror}); choose another --out") from error
            self.lock = until_begun.pop_all()

    def append(self, products: Sequence[Product], features: torch.Tensor) -> None:
        """Add ``products`` with their features [I, P, D], of several views [I, V, P, D], of any float dtype, rounded to
        the store's.

        ValueError where they have another shape or are not finite once rounded: no store holds NaN.
        """
        if features.shape != (len(products), *self.row_shape):
            raise ValueError(f"features: {tuple(features.shape)}, not {(len(products), *self.row_shape)}")
        rounded = features.detach().to("cpu", DTYPES[self.dtype]).contiguous()
        raw = rounded.view(_UNSIGNED[self.dtype]).numpy()
        for index in np.flatnonzero(~integrity.is_finite(raw, self.dtype)).tolist():
            raise ValueError(f"features: NaN or infinity in those of id {products[index].id}")
        try:
            self.file.write(raw)
        except OSError as error:
            raise InputError(f"{self.out}: cannot be written ({error.strerror}); choose another --out") from error
        self.crc32 += integrity.row_crc32(raw)
        for name, column in self.columns.items():
            column.extend(str(getattr(product, name)) for product in products)

    def commit(self, manifest: Manifest, problems: Problems | None = None) -> Manifest:
        """Write the other files, flush all to disk and rename. Returns the manifest as written."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        problems = problems or Problems()
        if not any(self.columns[QUERIES]):
            del self.columns[QUERIES]
        manifest.dtype, manifest.views, manifest.products = self.dtype, self.views, len(self.columns["id"])
        manifest.splits, manifest.leaks = dict(Counter(self.columns["split"])), leaks(self.columns)
        manifest.problems = problems.by_kind()
        try:
            crc32 = {integrity.CRC_COLUMN: pa.array(self.crc32, pa.uint32())}
            pq.write_table(pa.table(self.columns | crc32), self.partial / "products.parquet")
            (self.partial / "problems.jsonl").write_text(problems.to_jsonl())
            self.file.close()
            trained = [row for row, split in enumerate(self.columns["split"]) if split == "train"]
            file = self.partial / "features.bin"
            manifest.statistics = feature_statistics(file, self.dtype, self.row_shape, trained)
            manifest.files = integrity.file_hashes(self.partial)
            manifest.content_sha256 = integrity.content_sha256(self.columns, self.crc32, manifest)
            sealed = seal(manifest.to_dict())
            (self.partial / "manifest.json").write_text(json.dumps(sealed, indent=2) + "\n")
            fsync_all(self.partial)
            _replace(self.partial, self.out)
            fsync(self.out.parent)
        except OSError as error:
            raise InputError(f"{self.out}: cannot be written ({error.strerror}); choose another --out") from error
        return manifest

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()
        shutil.rmtree(self.partial, ignore_errors=True)  # gone already after a commit
        self.lock.close()


def check_out(out: Path, overwrite: bool) -> None:
    """InputError when a store cannot be put at ``out``; called before the long work."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        if not (out / "manifest.json").is_file():
            raise InputError(f"{out}: exists and is not a feature store; choose another --out")
        if not overwrite:
            raise InputError(f"{out}: exists; add --overwrite to replace it, or choose another --out")
    parent = _existing_parent(out)
    try:
        os.rmdir(
            tempfile.mkdtemp(prefix=f".{out.name}.", dir=parent)
        )  # permission bits do not tell: root, read-only disks
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({parent}: {error.strerror}); choose another --out") from error


def _existing_parent(path: Path) -> Path:
    path = path.absolute().parent
    while not path.exists():
        path = path.parent
    return path


def _check_space(out: Path, needed: int) -> None:
    free = shutil.disk_usage(_existing_parent(out)).free
    if needed > free:
        raise InputError(f"{out}: needs {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free; "
                         "free some or choose another --out")  # fmt: skip


def _remove_leftovers(out: Path) -> None:
    """Remove what killed processes of this machine left of earlier tries at ``out``; the store that one had set aside
    to replace it comes back."""
    for kind in (ASIDE, PARTIAL):
        for left in out.parent.glob(f".{out.name}.{socket.gethostname()}.*{kind}"):
            pid = left.name.split(".")[-2]
            if not pid.isdigit() or Path(f"/proc/{pid}").exists() or not Path("/proc/self").exists():
                continue
            if kind == ASIDE and not out.exists():
                os.rename(left, out)
            else:
                shutil.rmtree(left, ignore_errors=True)


def _replace(partial: Path, out: Path) -> None:
    """Put ``partial`` in the place of ``out``; an old store is set aside first and removed last."""
    if not out.exists():
        os.rename(partial, out)
        return
    aside = partial.with_suffix(ASIDE)
    os.rename(out, aside)
    os.rename(partial, out)
    shutil.rmtree(aside, ignore_errors=True)
