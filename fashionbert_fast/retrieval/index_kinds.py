"""The three structures of an index, each built by FAISS and kept as plain arrays.

FAISS's own files are never read: its reader trusts them, and an index may come from a stranger. What a structure adds
to the vectors is two arrays of numbers, whose bounds are checked before FAISS sees them; it then answers exactly as the
one that was built.

    flat   nothing: every vector is compared, exact
    hnsw   levels.npy (N,), neighbours.npy (E,): a graph whose layers thin out, walked towards the query
    ivf    centroids.npy (C, H), cells.npy (N,): vectors by their nearest centroid, a few of whose cells are compared

Shapes: N vectors, H their size, E edges, C cells, Q queries, k wanted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from fashionbert_fast.retrieval import optional

NEIGHBOURS, CONSTRUCTION = 32, 100  # of hnsw: edges a node and layer, and how widely they were looked for
TRAINING = 128  # of ivf: vectors a centroid is trained on
DTYPES = {"levels": "int32", "neighbours": "int32", "centroids": "float32", "cells": "int32"}
EFFORTS = (16, 1024)  # the range of hnsw's candidates and of ivf's cells: powers of two


class Flat:
    """Every vector is compared. ``effort``: how widely a query looks; of no meaning here."""

    ARRAYS: tuple[str, ...] = ()  # the names of those that are kept
    effort = 0

    def __init__(self, index: Any) -> None:
        self.index = index

    @classmethod
    def build(cls, vectors_NH: np.ndarray) -> Self:
        faiss = optional("faiss")
        index = faiss.IndexFlatIP(vectors_NH.shape[1])
        index.add(vectors_NH)
        return cls(index)

    def arrays(self) -> dict[str, np.ndarray]:
        """What `restore` needs beside the vectors."""
        return {}

    @classmethod
    def restore(cls, vectors_NH: np.ndarray, arrays: Mapping[str, np.ndarray]) -> Self:
        """Inverse of `build` and `arrays`. ValueError where the arrays are no such structure of those vectors."""
        return cls.build(vectors_NH)

    def search(self, queries_QH: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and rows (Q, k), best first; row -1 where fewer were found."""
        return self.index.search(queries_QH, k)

    def exact(self, queries_QH: np.ndarray, k: int, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """`search` that compares all vectors, or all of ``rows``."""
        faiss = optional("faiss")
        return self._all.search(queries_QH, k, params=faiss.SearchParameters(sel=_selector(rows)))

    @property
    def _all(self) -> Any:
        return self.index


class Hnsw(Flat):
    """A graph of neighbours in layers (Malkov and Yashunin, 2016)."""

    ARRAYS = ("levels", "neighbours")

    @classmethod
    def _empty(cls, dims: int) -> Any:
        faiss = optional("faiss")
        index = faiss.IndexHNSWFlat(dims, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = CONSTRUCTION
        return index

    @classmethod
    def build(cls, vectors_NH: np.ndarray) -> Self:
        index = cls._empty(vectors_NH.shape[1])
        index.add(vectors_NH)
        levels_N = optional("faiss").vector_to_array(index.hnsw.levels)
        index.hnsw.entry_point = int(levels_N.argmax())  # as `restore` has it: any node of the top layer will do
        return cls(index)

    def arrays(self) -> dict[str, np.ndarray]:
        faiss, graph = optional("faiss"), self.index.hnsw
        return {"levels": faiss.vector_to_array(graph.levels), "neighbours": faiss.vector_to_array(graph.neighbors)}

    @classmethod
    def restore(cls, vectors_NH: np.ndarray, arrays: Mapping[str, np.ndarray]) -> Self:
        faiss, index = optional("faiss"), cls._empty(vectors_NH.shape[1])
        levels_N, neighbours_E = arrays["levels"], arrays["neighbours"]
        places = faiss.vector_to_array(index.hnsw.cum_nneighbor_per_level)  # of a node's edges up to each layer
        offsets = _graph_offsets(levels_N, neighbours_E, places.astype(np.int64))
        index.storage.add(vectors_NH)
        index.ntotal, graph = len(vectors_NH), index.hnsw
        for target, values in ((graph.levels, levels_N), (graph.neighbors, neighbours_E),
                               (graph.offsets, offsets.astype(np.uint64))):  # fmt: skip
            faiss.copy_array_to_vector(values, target)
        graph.entry_point, graph.max_level = int(levels_N.argmax()), int(levels_N.max()) - 1
        return cls(index)

    @property
    def effort(self) -> int:
        return self.index.hnsw.efSearch

    @effort.setter
    def effort(self, candidates: int) -> None:
        self.index.hnsw.efSearch = candidates

    def search(self, queries_QH: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        faiss = optional("faiss")
        return self.index.search(queries_QH, k, params=faiss.SearchParametersHNSW(efSearch=max(self.effort, k)))

    @property
    def _all(self) -> Any:
        return optional("faiss").downcast_index(self.index.storage)


def _graph_offsets(levels_N: np.ndarray, neighbours_E: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Where each node's edges begin, (N + 1,). ValueError where the graph would have FAISS read beyond its arrays: an
    edge of a layer must lead to a node that this layer has."""
    if not 1 <= levels_N.min() <= levels_N.max() < len(places):
        raise ValueError("its levels cannot be")
    offsets = np.concatenate([[0], np.cumsum(places[levels_N])])
    if offsets[-1] != len(neighbours_E) or not -1 <= neighbours_E.min() <= neighbours_E.max() < len(levels_N):
        raise ValueError("its edges lead out of it")
    for layer in range(1, int(levels_N.max())):
        nodes = np.flatnonzero(levels_N > layer)
        edge = offsets[nodes][:, None] + np.arange(places[layer], places[layer + 1])
        reached = neighbours_E[edge]
        if not (levels_N[reached[reached >= 0]] > layer).all():
            raise ValueError("its edges lead out of their layer")
    return offsets


class Ivf(Flat):
    """Vectors in cells, each around a centroid (an inverted file)."""

    ARRAYS = ("centroids", "cells")

    def __init__(self, index: Any, centroids_CH: np.ndarray, cell_N: np.ndarray) -> None:
        super().__init__(index)
        self.centroids_CH, self.cell_N = centroids_CH, cell_N

    @classmethod
    def build(cls, vectors_NH: np.ndarray) -> Self:
        faiss, (rows, dims) = optional("faiss"), vectors_NH.shape
        cells = max(1, min(4 * math.isqrt(rows), rows // 39))  # FAISS warns below 39 vectors a centroid
        means = faiss.Kmeans(
            dims, cells, niter=10, spherical=True, seed=0, max_points_per_centroid=TRAINING, min_points_per_centroid=1
        )
        means.train(vectors_NH)
        _, cell_N1 = means.index.search(vectors_NH, 1)
        return cls.restore(vectors_NH, {"centroids": means.centroids, "cells": cell_N1[:, 0].astype(np.int32)})

    def arrays(self) -> dict[str, np.ndarray]:
        return {"centroids": self.centroids_CH, "cells": self.cell_N}

    @classmethod
    def restore(cls, vectors_NH: np.ndarray, arrays: Mapping[str, np.ndarray]) -> Self:
        faiss, (centroids_CH, cell_N) = optional("faiss"), (arrays["centroids"], arrays["cells"])
        if not 0 <= cell_N.min() <= cell_N.max() < len(centroids_CH) or not np.isfinite(centroids_CH).all():
            raise ValueError("its cells cannot be")
        dims, cells = vectors_NH.shape[1], len(centroids_CH)
        coarse = faiss.IndexFlatIP(dims)
        coarse.add(centroids_CH)
        index = faiss.IndexIVFFlat(coarse, dims, cells, faiss.METRIC_INNER_PRODUCT)
        index.is_trained = True
        wide_N = cell_N.astype(np.int64)
        index.add_core(len(vectors_NH), faiss.swig_ptr(vectors_NH), None, faiss.swig_ptr(wide_N))
        return cls(index, centroids_CH, cell_N)

    @property
    def effort(self) -> int:
        return self.index.nprobe

    @effort.setter
    def effort(self, cells: int) -> None:
        self.index.nprobe = min(cells, self.index.nlist)

    def exact(self, queries_QH: np.ndarray, k: int, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        faiss = optional("faiss")
        params = faiss.SearchParametersIVF(sel=_selector(rows), nprobe=self.index.nlist)
        return self.index.search(queries_QH, k, params=params)


def _selector(rows: np.ndarray | None) -> Any:
    return None if rows is None else optional("faiss").IDSelectorBatch(rows)


STRUCTURES: dict[str, type[Flat]] = {"flat": Flat, "hnsw": Hnsw, "ivf": Ivf}
