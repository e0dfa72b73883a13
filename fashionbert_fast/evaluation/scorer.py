"""From a model and a feature store to the scores the protocols ask for.

Shapes: K pairs, U distinct pairs, B pairs of a batch, H hidden.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

from fashionbert_fast.data.batch import PackedPairs
from fashionbert_fast.data.pairs import collate_pairs
from fashionbert_fast.data.titles import TokenizedTitles
from fashionbert_fast.errors import InputError
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.progress import progress

DEFAULT_BATCH_SIZE = 128
PRECISIONS = ("fp32", "bf16")


def _first_rows(values: Iterable[Hashable]) -> np.ndarray:
    """For each row the first with its value, int64 (N,)."""
    first: dict[Hashable, int] = {}
    return np.array([first.setdefault(value, row) for row, value in enumerate(values)], dtype=np.int64)


class PairScorer:
    """Scores (title, image) pairs of one store with one model: the probability that they belong together.

    model: has ``alignment_logits(batch) -> logits_B2`` (class 1 = match) and ``pooled(batch) -> pooled_BH``.
    titles: all titles of the store, tokenised once. batch_size: pairs of a forward pass; it moves results by float
    noise only. precision: "bf16" runs a bfloat16 copy of the model: about twice as fast on processors that
    have it, and close pairs may change places. Batches go to the device of the model.
    """

    def __init__(
        self,
        model: Any,
        store: FeatureStore,
        titles: TokenizedTitles,
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        precision: str = "fp32",
    ) -> None:
        if precision not in PRECISIONS:
            raise InputError(f"precision: {precision!r} is unknown; choose one of {', '.join(PRECISIONS)}")
        # A copy: the caller's model keeps its weights. Its operators take one dtype, so autocast would not do.
        self.model = model.eval() if precision == "fp32" else copy.deepcopy(model).to(torch.bfloat16).eval()
        self.store = store
        self.titles = titles
        self.batch_size = batch_size
        self.precision = precision
        self.device = next(model.parameters()).device
        # Equal titles are one text and equal photos one image, whatever their rows: they must tie exactly, not be told
        # apart by the float noise of two batches, here or where their features were made.
        self.text_N = _first_rows(store.titles)
        self.image_N = _first_rows(known or row for row, known in enumerate(store.image_hashes))

    def __call__(self, text_rows: np.ndarray, image_rows: np.ndarray) -> np.ndarray:
        """Same as ``score``."""
        return self.score(text_rows, image_rows)

    @torch.inference_mode()
    def score(self, text_rows: np.ndarray, image_rows: np.ndarray) -> np.ndarray:
        """Probability of a match for each pair of store rows, float64 [K].

        float64 because a confident model's probabilities lie closer to 1 than float32 can tell apart, and ranks are
        read from them.
        """
        keys_K = self.text_N[text_rows] * len(self.store) + self.image_N[image_rows]
        keys_U, place_K = np.unique(keys_K, return_inverse=True)
        text_U, image_U = np.divmod(keys_U, len(self.store))
        scores_U = np.empty(len(keys_U), dtype=np.float64)
        for chosen, batch in self._batches(text_U, image_U, "scoring pairs"):
            logits_B2 = self.model.alignment_logits(batch).double()
            scores_U[chosen] = torch.sigmoid(logits_B2[:, 1] - logits_B2[:, 0]).cpu().numpy()
        return scores_U[place_K]

    @torch.inference_mode()
    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """[CLS] vectors (pooled: dense + tanh) of products, own title with own image, float32 [n, H]."""
        rows = np.asarray(rows, dtype=np.int64)
        vectors_H: list[Any] = [None] * len(rows)
        for chosen, batch in self._batches(self.text_N[rows], self.image_N[rows], "reading [CLS] vectors"):
            pooled_BH = self.model.pooled(batch).float()
            for place, vector_H in zip(chosen, pooled_BH.cpu().numpy(), strict=True):
                vectors_H[place] = vector_H
        return np.stack(vectors_H)

    def _batches(
        self, text: np.ndarray, image: np.ndarray, description: str
    ) -> Iterator[tuple[np.ndarray, PackedPairs]]:
        """Batches of pairs: titles of one length together (little padding), then one image side by side (reused)."""
        order = np.lexsort((image, self.titles.lengths(text)))
        starts = range(0, len(order), self.batch_size)
        for start in progress(starts, total=len(starts), description=description):
            chosen = order[start : start + self.batch_size]
            batch = collate_pairs(self.store, self.titles, text[chosen], image[chosen])
            yield chosen, batch.to(self.device)
