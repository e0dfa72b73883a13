"""From a model and a feature store to the scores the protocols ask for.

Shapes: K pairs, U distinct pairs, B pairs of a batch, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from fashionbert_fast.progress import progress

DEFAULT_BATCH_SIZE = 128


class PairScorer:
    """Scores (title, image) pairs of one store with one model: the probability that they belong together.

    model: has ``alignment_logits(batch) -> logits_B2`` (class 1 = match) and ``pooled(batch) -> pooled_BH``.
    batch_size: pairs of a forward pass; it moves results by float noise only. Batches go to the device of the model.
    tokenizer: called on titles as a Hugging Face tokenizer is; max_text_tokens: where titles are cut.
    """

    def __init__(
        self, model: Any, store: Any, tokenizer: Any, *, batch_size: int = DEFAULT_BATCH_SIZE, max_text_tokens: int = 64
    ) -> None:
        self.model = model.eval()
        self.store = store
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.max_text_tokens = max_text_tokens
        self.device = next(model.parameters()).device
        # Equal titles are one text: they must tie exactly, not be told apart by the float noise of two batches.
        first_row: dict[str, int] = {}
        self.text_N = np.array([first_row.setdefault(title, row) for row, title in enumerate(store.titles)])
        self.length_N = self._title_lengths(list(first_row), list(first_row.values()))

    def __call__(self, text_rows: np.ndarray, image_rows: np.ndarray) -> np.ndarray:
        """Same as ``score``."""
        return self.score(text_rows, image_rows)

    @torch.inference_mode()
    def score(self, text_rows: np.ndarray, image_rows: np.ndarray) -> np.ndarray:
        """Probability of a match for each pair of store rows, float64 [K].

        float64 because a confident model's probabilities lie closer to 1 than float32 can tell apart, and ranks are
        read from them.
        """
        keys_K = self.text_N[text_rows] * len(self.store) + np.asarray(image_rows, dtype=np.int64)
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
        for chosen, batch in self._batches(self.text_N[rows], rows, "reading [CLS] vectors"):
            for place, vector_H in zip(chosen, self.model.pooled(batch).float().cpu().numpy(), strict=True):
                vectors_H[place] = vector_H
        return np.stack(vectors_H)

    def _batches(self, text: np.ndarray, image: np.ndarray, description: str) -> Iterator[tuple[np.ndarray, Any]]:
        """Batches of pairs, titles of one length together (little padding) and of one image side by side (reused)."""
        from fashionbert_fast.data.batches import collate_pairs

        order = np.lexsort((image, self.length_N[text]))
        starts = range(0, len(order), self.batch_size)
        for start in progress(starts, total=len(starts), description=description):
            chosen = order[start : start + self.batch_size]
            batch = collate_pairs(self.store, self.tokenizer, text[chosen], image[chosen], self.max_text_tokens)
            yield chosen, batch.to(self.device)

    def _title_lengths(self, titles: list[str], rows: list[int]) -> np.ndarray:
        """Tokens of each row's title, int [N]; rows that repeat a title carry 0 and are never asked for."""
        tokens = self.tokenizer(titles, truncation=True, max_length=self.max_text_tokens)["input_ids"]
        length_N = np.zeros(len(self.store), dtype=np.int64)
        length_N[rows] = [len(ids) for ids in tokens]
        return length_N
