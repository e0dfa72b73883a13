"""Vectors of a store's products: what retrieval is measured by, and what an index holds; and their cosines.

Shapes: n rows asked for, U distinct ones, H numbers of a vector, K pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from fashionbert_fast.data.batch import PackedPairs
from fashionbert_fast.data.pairs import collate_images, collate_pairs, collate_texts

if TYPE_CHECKING:
    from fashionbert_fast.inference.scorer import PairScorer

NAMES = {"both": "products", "text": "titles", "image": "photos", "query": "queries"}
PAIRS_AT_ONCE = 1 << 12  # of which cosines are taken: their vectors stay in the cache


def store_vectors(scorer: PairScorer, rows: np.ndarray, of: str) -> np.ndarray:
    """Vectors of a store's ``rows``, float32 (n, H), by all ranks. Equal titles, photos or both are one sequence: they
    tie exactly.

    of: "text", "image", "both", or "query": the titles as if somebody had typed them.
    """
    store, titles, canonical = scorer.store, scorer.titles, scorer.canonical
    if of == "both":
        text_U, image_U, place_n = canonical.pairs(rows, rows)
    else:
        text_U, place_n = canonical.images(rows) if of == "image" else canonical.texts(rows)
        image_U = text_U

    # Sequences of one length go together.
    order = np.argsort(image_U) if of == "image" else np.lexsort((image_U, titles.lengths(text_U)))
    text_U, image_U = text_U[order], image_U[order]

    def collate(span: slice) -> PackedPairs:
        if of == "both":
            return collate_pairs(store, titles, text_U[span], image_U[span])
        if of == "image":
            return collate_images(store, image_U[span])
        texts = collate_texts(titles, text_U[span], store.manifest.patches, store.manifest.feature_size)
        return texts.in_segment(scorer.model.query_segment) if of == "query" else texts

    vectors_UH = np.empty((len(order), scorer.model.vector_size), dtype=np.float32)
    key, what = text_U.tobytes() + image_U.tobytes(), f"embedding {NAMES[of]}"
    vectors_UH[order] = scorer.run(len(order), collate, scorer.model.vectors, key, vectors_UH[:0], what)
    return vectors_UH[place_n]


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
