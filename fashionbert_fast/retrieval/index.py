"""INDEX, what `fashionbert index` writes: vectors, the structure that finds the nearest of them, and their products.

    vectors.npy, products.parquet   as VECTORS has them
    *.npy                           the structure (`retrieval.index_kinds`)
    index.json                      kind, effort, recall, whose vectors they are, a hash of each file; sealed

It is complete: VECTORS may go. What answers needs besides is the model, which it names by path and hash.

Shapes: N vectors, H their size, Q queries, k wanted.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any, Self

import numpy as np

from fashionbert_fast.errors import InputError
from fashionbert_fast.files import seal, write_json
from fashionbert_fast.progress import progress_bar
from fashionbert_fast.retrieval import KINDS, TOP, optional
from fashionbert_fast.retrieval.embedding_store import (
    ARRAY,
    FIELDS,
    FORMAT_VERSION,
    PRODUCTS,
    Products,
    Vectors,
    check_files,
    check_out,
    check_source,
    directory,
    file_hashes,
    read_array,
    read_contents,
    read_manifest,
)
from fashionbert_fast.retrieval.index_kinds import DTYPES, EFFORTS, STRUCTURES, Flat

MANIFEST = "index.json"
# Flat is exact, and at 384 numbers a vector reads 77 MB for 50,000 of them: milliseconds. A graph takes 0.3 KB a vector
# more and is built one vector at a time, which for many millions is hours; cells are trained on a sample.
MOST_FLAT, MOST_HNSW = 50_000, 1_000_000
RECALL = 0.99  # what the effort is raised to reach
SAME = 1e-6  # cosines no further apart are a tie: float32 summed in another order
AGAIN = "make it again with `fashionbert index --overwrite`"
EXTRA = {"kind": str, "effort": int, "shapes": dict}  # what the manifest has besides that of VECTORS
MAKE_ONE = "make one with: fashionbert index VECTORS --out"


def choose_kind(rows: int) -> str:
    return "flat" if rows <= MOST_FLAT else "hnsw" if rows <= MOST_HNSW else "ivf"


def build_index(vectors: Path, out: Path, *, kind: str = "auto", overwrite: bool = False) -> dict[str, Any]:
    """Build INDEX of VECTORS in the directory ``out``; returns its manifest.

    The effort of a query (hnsw: candidates; ivf: cells) is the least power of two with which recall@10 against all
    vectors compared is `RECALL`, or the greatest that is tried; on titles as queries, which lie elsewhere than products
    do: an effort that finds the neighbours of a product may miss those of words.

    Args:
        kind: flat, hnsw, ivf, or auto: by the number of vectors (`choose_kind`).

    Raises:
        InputError: no whole VECTORS there, or nothing can be written to ``out``.
    """
    optional("faiss")
    check_out(out, MANIFEST, overwrite)
    source = Vectors.open(vectors)
    kind = choose_kind(len(source.products)) if kind == "auto" else kind
    start = time.perf_counter()
    with progress_bar() as bar:
        task = bar.add_task(f"building {kind}", total=2)
        structure = STRUCTURES[kind].build(source.vectors_NH)
        bar.update(task, advance=1, description="measuring recall")
        recall = _raise_effort(structure, source.queries_QH)
        bar.advance(task)
    manifest = {name: source.manifest[name] for name in (*FIELDS, "created") if name in source.manifest} | {
        "kind": kind, "effort": structure.effort, "shapes": {}, "build_seconds": time.perf_counter() - start,
        "recall": {"recall@10": recall, "queries": len(source.queries_QH),
                   "of": "titles of the store as queries, against all vectors compared"},
        "vectors": {"path": str(Path(vectors).resolve()), "sha256": source.manifest["files"][ARRAY]["sha256"]},
    }  # fmt: skip
    with directory(out) as folder:
        for name in (ARRAY, PRODUCTS):
            shutil.copyfile(source.path / name, folder / name)
        for name, values in structure.arrays().items():
            np.save(folder / f"{name}.npy", values)
            manifest["shapes"][name] = list(values.shape)
        sealed = seal(manifest | {"format_version": FORMAT_VERSION, "files": file_hashes(folder)})
        write_json(folder / MANIFEST, sealed)
    return sealed


def _raise_effort(structure: Flat, queries_QH: np.ndarray) -> float:
    exact_Qk, _ = structure.exact(queries_QH, TOP)
    effort, most = EFFORTS
    while True:
        structure.effort = effort
        recall = recall_of(structure.search(queries_QH, TOP), exact_Qk)
        if recall >= RECALL or effort >= most:
            return recall
        effort *= 2


def recall_of(found: tuple[np.ndarray, np.ndarray], exact_Qk: np.ndarray) -> float:
    """The share of each query's k that was found: as near as the k-th of all, so that ties are equally good."""
    cosines_Qk, rows_Qk = found
    there_Qk = np.isfinite(exact_Qk) & (exact_Qk > -2)  # FAISS fills up with its least float where there are fewer
    kth_Q1 = np.where(there_Qk, exact_Qk, np.inf).min(1, keepdims=True)
    hits_Q = ((cosines_Qk >= kth_Q1 - SAME) & (rows_Qk >= 0)).sum(1)
    return float((hits_Q / np.maximum(there_Qk.sum(1), 1)).mean())


class Index:
    """An opened INDEX: ``search`` gives rows of ``products``."""

    def __init__(self, path: Path, manifest: dict[str, Any], products: Products, structure: Flat) -> None:
        self.path, self.manifest, self.products, self.structure = path, manifest, products, structure

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Read and check. InputError, in one line, on anything that is not whole and unchanged, and on a structure that
        cannot be, whoever sealed it."""
        optional("faiss")
        path = Path(path)
        manifest = read_manifest(path, MANIFEST, FIELDS | EXTRA, MAKE_ONE, AGAIN)
        check_source(path / MANIFEST, manifest, AGAIN)
        if manifest["kind"] not in KINDS or not 0 <= manifest["effort"] <= EFFORTS[1]:
            raise InputError(f"{path / MANIFEST}: kind {manifest['kind']:.20}, effort {manifest['effort']}: cannot be; "
                             f"{AGAIN}")  # fmt: skip
        structure = STRUCTURES[manifest["kind"]]
        check_files(path, manifest["files"], (ARRAY, PRODUCTS, *(f"{name}.npy" for name in structure.ARRAYS)), AGAIN)
        products, vectors_NH = read_contents(path, manifest, AGAIN)
        try:
            restored = structure.restore(vectors_NH, _arrays(path, manifest, structure))
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"{path}: its {manifest['kind']} cannot be used ({error}); {AGAIN}") from error
        restored.effort = manifest["effort"]
        return cls(path, manifest, products, restored)

    def __len__(self) -> int:
        return len(self.products)

    def search(self, query_H: np.ndarray, top: int = TOP, rows: np.ndarray | None = None) -> list[tuple[int, float]]:
        """The ``top`` nearest products, (row, cosine), best first, fewer where there are fewer.

        rows: int64; search among these alone, all of which are compared.
        """
        query_1H, top = np.ascontiguousarray(query_H[None], np.float32), min(top, len(self))
        if rows is None:
            cosines_1k, rows_1k = self.structure.search(query_1H, top)
        else:
            cosines_1k, rows_1k = self.structure.exact(query_1H, min(top, len(rows)), rows)
        return [(int(row), float(cosine)) for row, cosine in zip(rows_1k[0], cosines_1k[0], strict=True) if row >= 0]

    def recall(self, queries_QH: np.ndarray, k: int = TOP) -> float:
        """Recall@k of the index against all vectors compared, on queries of your own."""
        queries_QH, k = np.ascontiguousarray(queries_QH, np.float32), min(k, len(self))
        return recall_of(self.structure.search(queries_QH, k), self.structure.exact(queries_QH, k)[0])


def _arrays(path: Path, manifest: dict[str, Any], structure: type[Flat]) -> dict[str, np.ndarray]:
    """The structure's arrays, of the shapes that they must have, or, where those are free, that the manifest says."""
    rows, dims = manifest["rows"], manifest["dims"]
    arrays = {}
    for name in structure.ARRAYS:
        said = manifest["shapes"].get(name)
        if not isinstance(said, list) or not all(type(size) is int and 0 < size < 2**40 for size in said):
            raise InputError(f"{path / MANIFEST}: {name} of shape {said!r:.50}, which cannot be; {AGAIN}")
        must = {"levels": [rows], "cells": [rows], "neighbours": said[:1], "centroids": [said[0], dims]}[name]
        arrays[name] = read_array(path / f"{name}.npy", must, DTYPES[name], AGAIN)
    return arrays
