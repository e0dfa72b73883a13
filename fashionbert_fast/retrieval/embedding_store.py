"""VECTORS, what `fashionbert embed` writes: a vector a product, and all that says whose they are and what made them.

    vectors.npy        float32 or float16 (N, H), each of length 1
    queries.npy        float32 (Q, H), of some of their titles as queries: what an index's recall is measured with
    products.parquet   id, title, category, subcategory, image (the photo's path), row (of the store), a line a vector
    vectors.json       how they were made, and the size and SHA-256 of the others, sealed

It may come from a stranger, or be cut: sizes, hashes and headers are checked before anything takes memory for it.

Shapes: N products, Q queries, H hidden.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fashionbert_fast.catalogue.parquet import open_index, texts
from fashionbert_fast.errors import InputError
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.files import check_file, is_sealed, read_json, seal, write_json, written_whole
from fashionbert_fast.retrieval import OF
from fashionbert_fast.run_directory import sha256

FORMAT_VERSION = 1
MANIFEST, ARRAY, PRODUCTS = "vectors.json", "vectors.npy", "products.parquet"
QUERIES = "queries.npy"
DTYPES = ("float32", "float16")
TEXTS = ("id", "title", "category", "subcategory", "image")
FIELDS = {"format_version": int, "rows": int, "dims": int, "dtype": str, "of": str, "split": str, "precision": str,
          "model": dict, "store": dict, "features": dict, "files": dict}  # fmt: skip
AGAIN = "make it again with `fashionbert embed --overwrite`"


@dataclass(frozen=True)
class Products:
    """A line a product, in the order of the vectors."""

    ids: list[str]
    titles: list[str]
    categories: list[str]
    subcategories: list[str]
    images: list[str]  # the photo's path
    row_N: np.ndarray  # int64: of the store

    @classmethod
    def of_store(cls, store: FeatureStore, rows: np.ndarray) -> Self:
        ids, titles, categories, subcategories, images = (
            [values[row] for row in rows]
            for values in (store.ids, store.titles, store.categories, store.subcategories, store.images)
        )
        return cls(ids, titles, categories, subcategories, images, rows)

    def __len__(self) -> int:
        return len(self.ids)

    def write(self, path: Path) -> None:
        columns = (self.ids, self.titles, self.categories, self.subcategories, self.images)
        named = dict(zip(TEXTS, (pa.array(values, pa.string()) for values in columns), strict=True))
        pq.write_table(pa.table(named | {"row": pa.array(self.row_N, pa.int64())}), path)

    @classmethod
    def read(cls, path: Path, rows: int, remedy: str) -> Self:
        """InputError where it is no such table of so many rows."""
        try:
            with open_index(path) as parquet:
                if missing := [name for name in (*TEXTS, "row") if name not in parquet.schema_arrow.names]:
                    raise pa.ArrowException(f"no column {missing[0]}")
                columns = [texts(parquet, name) for name in TEXTS]
                row_N = parquet.read(["row"])[0]
                if row_N.type != pa.int64() or row_N.null_count or {*map(len, (*columns, row_N))} != {rows}:
                    raise pa.ArrowException(f"is no table of {rows:,} products")
                ids, titles, categories, subcategories, images = columns
                return cls(ids, titles, categories, subcategories, images, row_N.to_numpy())
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read ({str(error).splitlines()[0][:150]}); {remedy}") from error


@dataclass(frozen=True)
class Vectors:
    """What the directory ``path`` holds. ``vectors_NH`` is float32, whatever is stored."""

    path: Path
    manifest: dict[str, Any]
    products: Products
    vectors_NH: np.ndarray
    queries_QH: np.ndarray

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Read and check. InputError, in one line, on anything that is not whole and unchanged."""
        path = Path(path)
        make_one = "make one with: fashionbert embed --out"
        manifest = read_manifest(path, MANIFEST, FIELDS | {"queries": int}, make_one, AGAIN)
        check_source(path / MANIFEST, manifest, AGAIN)
        check_files(path, manifest["files"], (ARRAY, PRODUCTS, QUERIES), AGAIN)
        products, vectors_NH = read_contents(path, manifest, AGAIN)
        shape_QH = (manifest["queries"], manifest["dims"])
        return cls(path, manifest, products, vectors_NH, read_array(path / QUERIES, shape_QH, "float32", AGAIN))


def read_contents(path: Path, manifest: Mapping[str, Any], remedy: str) -> tuple[Products, np.ndarray]:
    """The products and the vectors (N, H) float32 of a directory whose files were checked."""
    shape_NH = (manifest["rows"], manifest["dims"])
    vectors_NH = read_array(path / ARRAY, shape_NH, manifest["dtype"], remedy).astype(np.float32, copy=False)
    if not np.isfinite(vectors_NH.sum(1)).all():
        raise InputError(f"{path / ARRAY}: holds NaN or infinity; {remedy}")
    return Products.read(path / PRODUCTS, len(vectors_NH), remedy), vectors_NH


def write_vectors(
    out: Path, vectors_NH: np.ndarray, queries_QH: np.ndarray, products: Products, manifest: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the directory, whole or not at all; returns its manifest."""
    with directory(out) as folder:
        np.save(folder / ARRAY, vectors_NH)
        np.save(folder / QUERIES, queries_QH)
        products.write(folder / PRODUCTS)
        sizes = {"format_version": FORMAT_VERSION, "rows": len(vectors_NH), "dims": vectors_NH.shape[1]}
        sizes["queries"] = len(queries_QH)
        files = {"dtype": str(vectors_NH.dtype), "files": file_hashes(folder)}
        sealed = seal({**manifest, **sizes, **files})
        write_json(folder / MANIFEST, sealed)
    return sealed


# What an index's directory has as well ------------------------------------------------------------------------------
def check_out(out: Path, name: str, overwrite: bool) -> None:
    """InputError where no directory with the manifest ``name`` can be put at ``out``; called before the long work."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        if not (out / name).is_file():
            raise InputError(f"{out}: exists and has no {name}; choose another --out")
        if not overwrite:
            raise InputError(f"{out}: exists; add --overwrite to replace it, or choose another --out")


@contextmanager
def directory(out: Path) -> Iterator[Path]:
    """`written_whole`, an InputError where the disk will not have it."""
    try:
        with written_whole(out) as folder:
            yield folder
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error


def file_hashes(folder: Path) -> dict[str, dict[str, Any]]:
    return {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in sorted(folder.iterdir())}


def read_manifest(folder: Path, name: str, kinds: Mapping[str, type], make_one: str, remedy: str) -> dict[str, Any]:
    """The sealed manifest of a directory, with fields of those types. InputError on anything else."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such directory; {make_one} {folder}")
    if not (folder / name).is_file():
        raise InputError(f"{folder}: no {name} in it; {make_one} DIR")
    value = read_json(folder / name, remedy)
    if not is_sealed(value):
        raise InputError(f"{folder / name}: was edited or is damaged; {remedy}")
    if value.get("format_version") != FORMAT_VERSION:
        raise InputError(f"{folder / name}: has format {value.get('format_version')!r:.20}, this version reads "
                         f"{FORMAT_VERSION}; {remedy}")  # fmt: skip
    require_types(folder / name, value, kinds, remedy)
    return value


def require_types(file: Path, value: Mapping[str, Any], kinds: Mapping[str, type], remedy: str) -> None:
    for field, kind in kinds.items():
        if type(value.get(field)) is not kind:
            raise InputError(f"{file}: {field} is {value.get(field)!r:.50}, which it cannot be; {remedy}")


def check_source(file: Path, manifest: Mapping[str, Any], remedy: str) -> None:
    """InputError where the fields that say what the vectors are cannot be."""
    require_types(file, manifest["model"], {"path": str, "sha256": str}, remedy)
    require_types(file, manifest["store"], {"path": str, "content_sha256": str}, remedy)
    if manifest["of"] not in OF or manifest["dtype"] not in DTYPES or min(manifest["rows"], manifest["dims"]) < 1:
        raise InputError(f"{file}: says that it holds {manifest['rows']} vectors of {manifest['dims']} numbers, of "
                         f"{manifest['of']:.20}, {manifest['dtype']:.20}; {remedy}")  # fmt: skip


def check_files(folder: Path, known: Mapping[str, Any], names: Iterable[str], remedy: str) -> None:
    """InputError where one of the files ``names`` is not of the size and hash that ``known`` has for it."""
    for name in names:
        file, expected = folder / name, known.get(name)
        check_file(file, remedy, sys.maxsize)
        if not isinstance(expected, dict):
            raise InputError(f"{file}: the manifest does not know it; {remedy}")
        if (size := file.stat().st_size) != expected.get("bytes"):
            raise InputError(f"{file}: {size:,} bytes, where {expected.get('bytes')} were written; {remedy}")
        if sha256(file) != expected.get("sha256"):
            raise InputError(f"{file}: is not as it was written; {remedy}")


def read_array(path: Path, shape: Sequence[int], dtype: str, remedy: str) -> np.ndarray:
    """The array of that shape and type in a .npy file. InputError where it holds any other: nothing is unpickled, and
    no header is believed before the file is as long as it says."""
    try:
        with path.open("rb") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("it is of another version")
            found = np.lib.format.read_array_header_1_0(file)
            there, wanted = path.stat().st_size - file.tell(), math.prod(shape) * np.dtype(dtype).itemsize
            if found != (tuple(shape), False, np.dtype(dtype)) or there != wanted:
                raise ValueError(f"it holds {found[2]} {found[0]} in {there:,} bytes, not {dtype} {tuple(shape)}")
            return np.fromfile(file, dtype).reshape(shape)
    except (OSError, ValueError, SyntaxError, TypeError, MemoryError) as error:
        raise InputError(f"{path}: cannot be read ({error!s:.150}); {remedy}") from error
