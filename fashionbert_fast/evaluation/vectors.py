"""Vectors of a store's products: what retrieval is measured by, and what an index holds.

Shapes: n rows asked for, U distinct ones, H hidden.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from fashionbert_fast.data.batch import PackedPairs
from fashionbert_fast.data.pairs import collate_images, collate_pairs, collate_texts
from fashionbert_fast.evaluation.scorer import PairScorer
from fashionbert_fast.features.encoding import ordered
from fashionbert_fast.progress import progress

NAMES = {"both": "products", "text": "titles", "image": "photos", "query": "queries"}


@torch.inference_mode()
def store_vectors(scorer: PairScorer, rows: np.ndarray, of: str) -> np.ndarray:
    """Vectors of a store's ``rows``, float32 (n, H). Equal titles, photos or both are one sequence: they tie exactly.

    of: "text", "image", "both", or "query": the titles as if somebody had typed them.

    Sequences of one length go together, and the next batch is read while one is computed.
    """
    store, titles = scorer.store, scorer.titles
    text_n, image_n = scorer.text_N[rows], scorer.image_N[rows]
    key_n = {"image": image_n, "both": text_n * len(store) + image_n}.get(of, text_n)
    _, first_U, place_n = np.unique(key_n, return_index=True, return_inverse=True)
    text_U, image_U = text_n[first_U], image_n[first_U]

    def collate(chosen: np.ndarray) -> PackedPairs:
        if of == "both":
            return collate_pairs(store, titles, text_U[chosen], image_U[chosen])
        if of == "image":
            return collate_images(store, image_U[chosen])
        texts = collate_texts(titles, text_U[chosen], store.manifest.patches, store.manifest.feature_size)
        return texts.in_segment(scorer.model.query_segment) if of == "query" else texts

    order = np.argsort(image_U) if of == "image" else np.lexsort((image_U, titles.lengths(text_U)))
    chunks = [order[start : start + scorer.batch_size] for start in range(0, len(order), scorer.batch_size)]
    vectors_UH = np.empty((len(order), scorer.model.config.hidden_size), dtype=np.float32)
    with ThreadPoolExecutor(1) as pool:
        batches = ordered(pool, collate, chunks, ahead=2)
        for chosen, batch in zip(chunks, progress(batches, len(chunks), f"embedding {NAMES[of]}"), strict=True):
            vectors_UH[chosen] = scorer.model.vectors(batch.to(scorer.device)).cpu().numpy()
    return vectors_UH[place_n]
