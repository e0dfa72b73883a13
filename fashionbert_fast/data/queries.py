"""The queries of a store: as tokens, one drawn for a match, and which items of a batch are wrong for it.

An item is right for a query that it has, or that a twin of it has (a view of the same product, a row of the same title
or photo); every other is wrong. Training and evaluation ask this in one place, `Queries.right`.

Shapes: N products, U different queries, A pairs of a query and a product, B pairs of a micro-batch, C slots, at least
B, R ranks, G = R C items of all ranks, K products asked about.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fashionbert_fast.catalogue.queries import listed
from fashionbert_fast.catalogue.twins import normalised_title
from fashionbert_fast.data.batch import QueryTargets
from fashionbert_fast.data.counter_rng import Stream, random_bits
from fashionbert_fast.data.sampling import EpochPlan, numbered
from fashionbert_fast.data.titles import TokenizedTitles
from fashionbert_fast.features.store import FeatureStore

NONE = -1  # in the place of a query


class _Lists:
    """A list of numbers for each of ``rows``, all of them in one array."""

    def __init__(self, owner_A: np.ndarray, value_A: np.ndarray, rows: int) -> None:
        self.values = value_A[np.argsort(owner_A, kind="stable")]
        self.counts = np.bincount(owner_A, minlength=rows)
        self.starts = np.cumsum(self.counts) - self.counts

    def of(self, rows_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of ``rows_K``, one list after another, and the place in ``rows_K`` that each belongs to."""
        counts_K = self.counts[rows_K]
        place = np.repeat(np.arange(len(rows_K)), counts_K)
        within = np.arange(len(place)) - np.repeat(np.cumsum(counts_K) - counts_K, counts_K)
        return self.values[self.starts[rows_K][place] + within], place


class Queries:
    """The different queries of a store, those that read the same being one, and the products that have them.

    texts: their tokens, by number. segment: what the model tells their tokens from a title's by.
    """

    def __init__(self, store: FeatureStore, tokenizer, max_text_tokens: int, segment: int) -> None:
        asked = [(row, query) for row, cell in enumerate(store.queries) if cell for query in listed(cell)]
        row_A = np.array([row for row, _ in asked], dtype=np.int64)
        query_A = numbered(normalised_title(query) for _, query in asked)
        first_U = np.unique(query_A, return_index=True)[1]
        self.texts = TokenizedTitles([asked[place][1] for place in first_U.tolist()], tokenizer, max_text_tokens)
        self.segment, self.twin_N = segment, store.twin_N
        self.by_product = _Lists(row_A, query_A, len(store))
        self.by_twins = _Lists(self.twin_N[row_A], query_A, len(store))

    def of(self, rows_K: np.ndarray) -> np.ndarray:
        """Numbers of the different queries that products have, ascending, int64."""
        return np.unique(self.by_product.of(rows_K)[0])

    def drawn(self, rows_K: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
        """One query of each product, all of its equally likely, int64 (K,); NONE where it has none."""
        counts_K = self.by_product.counts[rows_K]
        bits_K = random_bits(seed, Stream.QUERY, epoch, rows_K) % np.maximum(counts_K, 1).astype(np.uint64)
        query_K = np.full(len(rows_K), NONE)
        has_K = counts_K > 0
        query_K[has_K] = self.by_product.values[(self.by_product.starts[rows_K] + bits_K.astype(np.int64))[has_K]]
        return query_K

    def right(self, query_C: np.ndarray, rows_K: np.ndarray) -> np.ndarray:
        """bool (C, K): whether a product is right for a query. None is for NONE."""
        query, place = self.by_twins.of(self.twin_N[rows_K])
        wanted = np.isin(query, query_C)  # few of those that the products have
        right_CK = np.zeros((len(query_C), len(rows_K)), dtype=bool)
        slot, which = np.nonzero(query_C[:, None] == query[wanted])
        right_CK[slot, place[wanted][which]] = True
        return right_CK

    def ask(
        self, plan: EpochPlan, spans: Sequence[slice], rank: int, slots: int, *, seed: int, epoch: int
    ) -> tuple[np.ndarray, QueryTargets]:
        """The queries (C,) of a rank's part of a micro-batch, NONE where a slot has none, and what they are for.

        Args:
            spans: each rank's part of the plan, of at most ``slots`` pairs.
        """
        item_G, rows_G = np.zeros((2, len(spans) * slots), dtype=np.int64)
        for place, span in enumerate(spans):
            here = slice(place * slots, place * slots + span.stop - span.start)
            item_G[here], rows_G[here] = plan.is_match[span], plan.text_rows[span]
        own = slice(rank * slots, (rank + 1) * slots)
        query_C = np.where(item_G[own], self.drawn(rows_G[own], seed=seed, epoch=epoch), NONE)
        asks_C = query_C != NONE
        wrong_CG = ~self.right(query_C, rows_G) & (item_G > 0) & asks_C[:, None]
        return query_C, QueryTargets(torch.from_numpy(asks_C), torch.from_numpy(wrong_CG))

    def gather(self, query_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of the queries, one after another, and how many each has (C,), 0 for NONE."""
        asks_C = query_C != NONE
        ids, _, offsets = self.texts.gather(query_C[asks_C])
        lengths_C = np.zeros(len(query_C), dtype=np.int64)
        lengths_C[asks_C] = np.diff(offsets)
        return ids, lengths_C
