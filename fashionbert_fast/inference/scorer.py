"""From a model and a feature store to the scores the protocols ask for.

Shapes: K pairs, U distinct pairs, n rows, B pairs of a batch, H hidden.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch

from fashionbert_fast.data.batch import PackedPairs
from fashionbert_fast.data.pairs import collate_images, collate_pairs, collate_texts
from fashionbert_fast.data.titles import TokenizedTitles
from fashionbert_fast.distributed import all_reduce_sum, world_size
from fashionbert_fast.errors import InputError
from fashionbert_fast.features.encoding import ordered
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.inference.canonical import Canonical
from fashionbert_fast.inference.embeddings import KeptVectors, cosines
from fashionbert_fast.inference.shards import Parts

DEFAULT_BATCH_SIZE = 128
PART_BATCHES = 8  # of a part that is dealt to a rank, and kept when it is done
PRECISIONS = ("fp32", "bf16")
KINDS = ("match", "similarity")  # of scores that a model may have
NAMES = {"both": "products", "text": "titles", "image": "photos", "query": "queries"}


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


class Scorer(Protocol):
    """What evaluation asks of a model on a store, whatever model it is.

    scores: which of `KINDS` it has, the one it is known for first. "match": the probability that title and photo belong
    together; "similarity": any number, the larger the nearer. Equal titles, and equal photos, tie (`Canonical`).
    """

    scores: tuple[str, ...]
    store: FeatureStore
    work: Work

    def score(self, text_rows: np.ndarray, image_rows: np.ndarray, kind: str = ...) -> np.ndarray:
        """float64 [K], of pairs of store rows. A collective: every rank asks for the same."""
        ...


class PairScorer:
    """Scores (title, image) pairs of one store with one model: the probability that they belong together ("match"), or
    the cosine of the vectors of the title alone and the photo alone ("similarity").

    model: has ``alignment_logits(batch) -> logits_B2`` (class 1 = match), ``pooled(batch) -> pooled_BH`` and
    ``vectors(sequences)``, unit vectors of ``vector_size`` numbers.
    titles: all titles of the store, tokenised once. batch_size: pairs of a forward pass; it moves scores by float
    noise only. precision: "bf16" runs a bfloat16 copy of the model: about twice as fast on processors that
    have it, and close pairs may change places. Batches go to the device of the model. parts: where what is scored is
    kept until all is; the pairs of a batch, and so every bit of their scores, do not depend on the number of ranks.
    """

    scores: tuple[str, ...] = KINDS

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
        self.canonical = Canonical.of(store)
        self._texts, self._images = KeptVectors(len(store)), KeptVectors(len(store))

    def score(self, text_rows: np.ndarray, image_rows: np.ndarray, kind: str = "match") -> np.ndarray:
        """The score of each pair of store rows, float64 [K]: the probability of a match, or the similarity.

        float64 because a confident model's probabilities lie closer to 1 than float32 can tell apart, and ranks are
        read from them. A title's vector, and a photo's, is computed the first time it is needed and kept.
        """
        text_U, image_U, place_K = self.canonical.pairs(text_rows, image_rows)
        return {"match": self._match, "similarity": self._similarity}[kind](text_U, image_U)[place_K]

    def _match(self, text_U: np.ndarray, image_U: np.ndarray) -> np.ndarray:
        def probability(batch: PackedPairs) -> torch.Tensor:
            logits_B2 = self.model.alignment_logits(batch).double()
            return torch.sigmoid(logits_B2[:, 1] - logits_B2[:, 0])

        return self._forward(text_U, image_U, probability, np.empty(0), "scoring pairs")

    def _similarity(self, text_U: np.ndarray, image_U: np.ndarray) -> np.ndarray:
        texts = self._texts.of(text_U, partial(self.embed, of="text"))
        return cosines(*texts, *self._images.of(image_U, partial(self.embed, of="image")))

    def embed(self, rows: np.ndarray, of: str) -> np.ndarray:
        """Unit vectors of products by all ranks, float32 [n, E]: `FashionBert.vectors` of store ``rows``. Equal titles,
        photos or both are one sequence: they tie exactly.

        of: "text", "image", "both", or "query": the titles as if somebody had typed them.
        """
        store, titles, canonical = self.store, self.titles, self.canonical
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
            return texts.in_segment(self.model.query_segment) if of == "query" else texts

        vectors_UE = np.empty((len(order), self.model.vector_size), dtype=np.float32)
        key, what = text_U.tobytes() + image_U.tobytes(), f"embedding {NAMES[of]}"
        vectors_UE[order] = self.run(len(order), collate, self.model.vectors, key, vectors_UE[:0], what)
        return vectors_UE[place_n]

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """[CLS] vectors (pooled: dense + tanh) of products, own title with own image, float32 [n, H]."""
        rows = np.asarray(rows, dtype=np.int64)
        like = np.empty((0, self.model.config.hidden_size), dtype=np.float32)

        def pooled(batch: PackedPairs) -> torch.Tensor:
            return self.model.pooled(batch).float()

        text_n, image_n = self.canonical.text_N[rows], self.canonical.image_N[rows]
        return self._forward(text_n, image_n, pooled, like, "reading [CLS] vectors")

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
