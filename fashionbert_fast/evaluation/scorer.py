"""From a model and a feature store to the scores the protocols ask for.

Shapes: K pairs, U distinct pairs, B pairs of a batch, H hidden.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fashionbert_fast.data.batch import PackedPairs
from fashionbert_fast.data.pairs import collate_pairs
from fashionbert_fast.data.titles import TokenizedTitles
from fashionbert_fast.distributed import all_reduce_sum, world_size
from fashionbert_fast.errors import InputError
from fashionbert_fast.evaluation.parts import Parts
from fashionbert_fast.features.encoding import ordered
from fashionbert_fast.features.store import FeatureStore

DEFAULT_BATCH_SIZE = 128
PART_BATCHES = 8  # of a part that is dealt to a rank, and kept when it is done
PRECISIONS = ("fp32", "bf16")


def _first_rows(values: Iterable[Hashable]) -> np.ndarray:
    """For each row the first with its value, int64 (N,)."""
    first: dict[Hashable, int] = {}
    return np.array([first.setdefault(value, row) for row, value in enumerate(values)], dtype=np.int64)


@dataclass
class Work:
    """What a scorer has done so far, all ranks together: distinct sequences, their text tokens and patches, seconds.
    What an interrupted evaluation had done before is not in it."""

    sequences: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def throughput(self, of: str) -> dict[str, float]:
        """As `fashionbert evaluate --json` has it. of: what a sequence is, "pairs" or "sequences"."""
        seconds = max(self.seconds, 1e-9)
        rates = {f"{of}_per_s": self.sequences / seconds, "tokens_per_s": self.tokens / seconds}
        return {of: self.sequences, "tokens": self.tokens, "seconds": self.seconds, **rates, "ranks": world_size()}


class PairScorer:
    """Scores (title, image) pairs of one store with one model: the probability that they belong together.

    model: has ``alignment_logits(batch) -> logits_B2`` (class 1 = match) and ``pooled(batch) -> pooled_BH``.
    titles: all titles of the store, tokenised once. batch_size: pairs of a forward pass; it moves scores by float
    noise only. precision: "bf16" runs a bfloat16 copy of the model: about twice as fast on processors that
    have it, and close pairs may change places. Batches go to the device of the model. parts: where what is scored is
    kept until all is; the pairs of a batch, and so every bit of their scores, do not depend on the number of ranks.
    """

    def __init__(
        self,
        model: Any,
        store: FeatureStore,
        titles: TokenizedTitles,
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        precision: str = "fp32",
        parts: Parts | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise InputError(f"precision: {precision!r} is unknown; choose one of {', '.join(PRECISIONS)}")
        # A copy: the caller's model keeps its weights. Its operators take one dtype, so autocast would not do.
        self.model = model.eval() if precision == "fp32" else copy.deepcopy(model).to(torch.bfloat16).eval()
        self.store = store
        self.titles = titles
        self.batch_size = batch_size
        self.precision = precision
        self.parts, self.work = parts or Parts(), Work()
        self.device = next(model.parameters()).device
        # Equal titles are one text and equal photos one image, whatever their rows: they must tie exactly, not be told
        # apart by the float noise of two batches, here or where their features were made.
        self.text_N = _first_rows(store.titles)
        self.image_N = _first_rows(known or row for row, known in enumerate(store.image_hashes))

    def __call__(self, text_rows: np.ndarray, image_rows: np.ndarray) -> np.ndarray:
        """Same as ``score``."""
        return self.score(text_rows, image_rows)

    def score(self, text_rows: np.ndarray, image_rows: np.ndarray) -> np.ndarray:
        """Probability of a match for each pair of store rows, float64 [K].

        float64 because a confident model's probabilities lie closer to 1 than float32 can tell apart, and ranks are
        read from them.
        """
        keys_K = self.text_N[text_rows] * len(self.store) + self.image_N[image_rows]
        keys_U, place_K = np.unique(keys_K, return_inverse=True)
        text_U, image_U = np.divmod(keys_U, len(self.store))

        def probability(batch: PackedPairs) -> torch.Tensor:
            logits_B2 = self.model.alignment_logits(batch).double()
            return torch.sigmoid(logits_B2[:, 1] - logits_B2[:, 0])

        return self._forward(text_U, image_U, probability, np.empty(0), "scoring pairs")[place_K]

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """[CLS] vectors (pooled: dense + tanh) of products, own title with own image, float32 [n, H]."""
        rows = np.asarray(rows, dtype=np.int64)
        like = np.empty((0, self.model.config.hidden_size), dtype=np.float32)

        def pooled(batch: PackedPairs) -> torch.Tensor:
            return self.model.pooled(batch).float()

        return self._forward(self.text_N[rows], self.image_N[rows], pooled, like, "reading [CLS] vectors")

    def _forward(
        self, text: np.ndarray, image: np.ndarray, read: Callable[[PackedPairs], torch.Tensor], like: np.ndarray,
        what: str,
    ) -> np.ndarray:  # fmt: skip
        """What ``read`` gives of each pair. Titles of one length are batched together (little padding), then pairs of
        one image side by side (it is reused)."""
        order = np.lexsort((image, self.titles.lengths(text)))
        text, image = text[order], image[order]

        def collate(span: slice) -> PackedPairs:
            return collate_pairs(self.store, self.titles, text[span], image[span])

        found = np.empty((len(order), *like.shape[1:]), dtype=like.dtype)
        found[order] = self.run(len(order), collate, read, text.tobytes() + image.tobytes(), like, what)
        return found

    @torch.inference_mode()
    def run(
        self, count: int, collate: Callable[[slice], PackedPairs], read: Callable[[PackedPairs], torch.Tensor],
        key: bytes, like: np.ndarray, what: str,
    ) -> np.ndarray:  # fmt: skip
        """What ``read`` gives of each of ``count`` sequences, a batch at a time, by all ranks; a collective.

        collate: the sequences of a span; the next ones are collated while a batch is computed. key: what tells these
        sequences from others. like: an empty array of what comes of them, (0, ...). what: is done, in a word or two.
        """
        start, done = time.perf_counter(), torch.zeros(2, dtype=torch.int64)

        def computed(batch: PackedPairs) -> np.ndarray:
            values = read(batch.to(self.device)).cpu().numpy()
            done.add_(torch.tensor([len(values), batch.tokens]))
            return values

        def part(rows: slice) -> np.ndarray:
            starts = range(rows.start, rows.stop, self.batch_size)
            spans = [slice(start, min(start + self.batch_size, rows.stop)) for start in starts]
            with ThreadPoolExecutor(1) as pool:
                return np.concatenate([computed(batch) for batch in ordered(pool, collate, spans, ahead=2)])

        found = self.parts.run(what.encode() + key, like, count, self.batch_size * PART_BATCHES, part, what)
        sequences, tokens = all_reduce_sum(done).tolist()
        self.work.sequences, self.work.tokens = self.work.sequences + sequences, self.work.tokens + tokens
        self.work.seconds += time.perf_counter() - start
        return found
