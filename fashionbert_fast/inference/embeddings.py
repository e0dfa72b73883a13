"""Embeddings of a store's products that are kept between questions, and their cosines.

Shapes: n rows asked for, U distinct ones, H numbers of a vector, K pairs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

PAIRS_AT_ONCE = 1 << 12  # of which cosines are taken: their vectors stay in the cache


class KeptVectors:
    """Vectors of the rows of a store, each made once, however often it is asked for."""

    def __init__(self, rows: int) -> None:
        self.place_N, self.vectors_UH = np.full(rows, -1), np.empty((0, 0), np.float32)

    def of(self, rows: np.ndarray, embed: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """All vectors so far (U, H), and which of them those of ``rows`` are (n,). embed: what makes the missing ones,
        rows (n,) -> vectors (n, H)."""
        new = np.unique(rows[self.place_N[rows] < 0])
        if len(new):
            made = embed(new)
            self.place_N[new] = len(self.vectors_UH) + np.arange(len(new))
            self.vectors_UH = np.concatenate([self.vectors_UH, made]) if len(self.vectors_UH) else made
        return self.vectors_UH, self.place_N[rows]


def cosines(left_UH: np.ndarray, left_K: np.ndarray, right_VH: np.ndarray, right_K: np.ndarray) -> np.ndarray:
    """float64 (K,): the dot products of unit vectors, row left_K[k] of the one with row right_K[k] of the other.

    Multiplied and added up in float64, a pair at a time in one order, so that the bits of a pair do not depend on which
    others are asked for, as those of a matrix product do.
    """
    found_K = np.empty(len(left_K))
    for start in range(0, len(left_K), PAIRS_AT_ONCE):
        span = slice(start, start + PAIRS_AT_ONCE)
        found_K[span] = np.multiply(left_UH[left_K[span]], right_VH[right_K[span]], dtype=np.float64).sum(axis=1)
    return found_K
