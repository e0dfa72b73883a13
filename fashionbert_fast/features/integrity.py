"""Whether a feature store is what was written: hashes of its files, a checksum of every row's features.

`FeatureStore.open` checks what costs next to nothing: the manifest's own hash, the sizes, the hashes of all but the
features and a handful of rows. `verify` reads everything. Stores written before there were hashes open as they did.

Shapes: N products, n of them, V views of a photo, P patches, D feature.
"""

from __future__ import annotations

import hashlib
import json
import sys
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fashionbert_fast.errors import InputError
from fashionbert_fast.features.manifest import Manifest
from fashionbert_fast.files import SEAL, check_file, is_sealed
from fashionbert_fast.progress import progress

CRC_COLUMN = "features_crc32"  # of products.parquet: CRC-32 (zlib) of the row's bytes in features.bin
# Not the photo's path: the same content may have been prepared from a catalogue that lay elsewhere.
CONTENT = ("id", "title", "category", "subcategory", "split", "group", "image_hash")
EXPONENT = {"bfloat16": 0x7F80, "float16": 0x7C00, "float32": 0x7F80_0000}  # all of these bits set: infinite or NaN
ROWS_AT_OPENING = 8
AGAIN = "prepare the store again with --overwrite"


class Stored(Protocol):
    """What is checked of a `features.store.FeatureStore`."""

    path: Path
    ids: list[str]
    crc32_N: np.ndarray | None
    manifest: Manifest
    columns: Mapping[str, list[str]]

    def raw(self, row: int) -> np.ndarray: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Damage:
    """Something of a store that is not as it was written. ``row`` counts from 0; -1: the file as a whole."""

    file: str
    row: int
    id: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}{f': row {self.row} (id {self.id})' if self.row >= 0 else ''}: {self.what}"


def check_seal(value: Mapping[str, Any]) -> None:
    """ValueError where manifest.json does not hold what `files.seal` gave; one without any hashes passes."""
    if SEAL not in value and (value.get("files") or value.get("content_sha256")):
        raise ValueError(f"was edited or is damaged: its {SEAL} is not there")
    if SEAL in value and not is_sealed(value):
        raise ValueError(f"was edited or is damaged: its {SEAL} does not belong to its fields")


def row_crc32(raw: np.ndarray) -> list[int]:
    """CRC-32 of the bytes of each row of a C-contiguous array."""
    return [zlib.crc32(row) for row in raw]


def content_sha256(
    columns: Mapping[str, Sequence[str]], crc32_N: Sequence[int] | np.ndarray, manifest: Manifest
) -> str:
    """SHA-256 (hex) of what a store holds: products, splits, photos' hashes, any queries, and features, in order.

    Equal for equal content, whoever wrote the files, with whatever library, from whatever directory of photos.
    """
    digest = hashlib.sha256(json.dumps([manifest.fingerprint, manifest.dtype]).encode())
    for name in CONTENT + (("queries",) if any(columns.get("queries", ())) else ()):
        digest.update(json.dumps([name, list(columns[name])]).encode())
    digest.update(np.asarray(crc32_N, dtype="<u4").tobytes())
    return digest.hexdigest()


def file_hashes(folder: Path) -> dict[str, dict[str, Any]]:
    """What the manifest says of the other files. features.bin has no hash of its own: its rows have theirs."""
    hashed = {name: _file_hash(folder / name) for name in ("products.parquet", "problems.jsonl")}
    return hashed | {"features.bin": {"bytes": (folder / "features.bin").stat().st_size}}


def _file_hash(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def file_difference(path: Path, manifest: Manifest) -> str:
    """In what a file is not what the manifest says of it; "": it is, or nothing is said. InputError: unreadable."""
    expected = manifest.files.get(path.name)
    if not expected:
        return ""
    check_file(path, AGAIN, sys.maxsize)
    try:
        found = _file_hash(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if found == expected:
        return ""
    said = expected.get("bytes") if isinstance(expected, dict) else None
    if found["bytes"] != said:
        return f"{found['bytes']} bytes, where the manifest says {said}: damaged, or of another store"
    return "its hash is not the one in the manifest: damaged, or of another store"


def is_finite(raw: np.ndarray, dtype: str) -> np.ndarray:
    """bool (n,): which rows of raw features [n, ...] hold numbers only."""
    mask = raw.dtype.type(EXPONENT[dtype])
    return np.array([not ((row & mask) == mask).any() for row in raw], dtype=bool)


def damaged_rows(store: Stored, rows: Iterable[int]) -> Iterable[Damage]:
    """The rows among ``rows`` whose features are not those that were written, or not numbers."""
    for row in rows:
        raw_VPD = store.raw(row)
        if store.crc32_N is not None and zlib.crc32(raw_VPD) != store.crc32_N[row]:
            what = "its features do not match their checksum (damaged, or of another store)"
        elif not is_finite(raw_VPD, store.manifest.dtype).all():
            what = "its features hold NaN or infinity"
        else:
            continue
        yield Damage(f"{store.path}/features.bin", int(row), store.ids[row], what)


def check_some_rows(store: Stored) -> None:
    """InputError where one of `ROWS_AT_OPENING` rows, spread from first to last, is damaged."""
    some = np.unique(np.linspace(0, len(store) - 1, min(ROWS_AT_OPENING, len(store))).astype(int))
    for damage in damaged_rows(store, some.tolist()):
        raise InputError(f"{damage}; fashionbert inspect {store.path} --verify lists all, then {AGAIN}")


def verify(store: Stored) -> list[Damage]:
    """Read the whole of ``store``, under a progress bar: everything that is not as it was written.

    Of a store without hashes only the features' finiteness can be told.
    """
    found = []
    if store.crc32_N is not None:
        content = content_sha256(store.columns, store.crc32_N, store.manifest)
        if content != store.manifest.content_sha256:
            what = "its rows are not those that the manifest's content_sha256 stands for"
            found.append(Damage(f"{store.path}/products.parquet", -1, "", what))
    return found + list(damaged_rows(store, progress(range(len(store)), len(store), "verifying rows")))
