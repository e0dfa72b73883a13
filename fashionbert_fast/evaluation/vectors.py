"""Vectors of a store's products: what retrieval is measured by, and what an index holds.

Shapes: n rows asked for, U distinct ones, H hidden.
"""

from __future__ import annotations

import numpy as np

from fashionbert_fast.data.batch import PackedPairs
from fashionbert_fast.data.pairs import collate_images, collate_pairs, collate_texts
from fashionbert_fast.evaluation.scorer import PairScorer

NAMES = {"both": "products", "text": "titles", "image": "photos", "query": "queries"}


def store_vectors(scorer: PairScorer, rows: np.ndarray, of: str) -> np.ndarray:
    """Vectors of a store's ``rows``, float32 (n, H), by all ranks. Equal titles, photos or both are one sequence: they
    tie exactly.

    of: "text", "image", "both", or "query": the titles as if somebody had typed them.
    """
    store, titles = scorer.store, scorer.titles
    text_n, image_n = scorer.text_N[rows], scorer.image_N[rows]
    key_n = {"image": image_n, "both": text_n * len(store) + image_n}.get(of, text_n)
    _, first_U, place_n = np.unique(key_n, return_index=True, return_inverse=True)
    text_U, image_U = text_n[first_U], image_n[first_U]

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

    vectors_UH = np.empty((len(order), scorer.model.config.hidden_size), dtype=np.float32)
    key, what = text_U.tobytes() + image_U.tobytes(), f"embedding {NAMES[of]}"
    vectors_UH[order] = scorer.run(len(order), collate, scorer.model.vectors, key, vectors_UH[:0], what)
    return vectors_UH[place_n]
