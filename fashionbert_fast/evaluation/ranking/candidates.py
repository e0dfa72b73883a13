"""Which products a query is ranked against.

Shapes: N products evaluated, Q queries, C candidates of a query.

Every draw is a function of the seed and the products alone: a candidate's place in the draw of a query is a hash of
(seed, query id, candidate id), so neither the order of the rows nor the other queries nor the library version moves it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fashionbert_fast.data.counter_rng import splitmix64
from fashionbert_fast.data.sampling import numbered


def _hash64(*parts: object) -> int:
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class CandidateLists:
    """The candidates of each query, as positions 0 .. N - 1 in the evaluated rows.

    queries_Q: the query products. candidates_QC: their candidates, the truth among them at column truth_Q.
    left_out_QC: True where a column is no candidate of the query, another view of its product above all; None: nowhere.
    tier_Q: how far a list had to reach: 0 the query's sub-category, 1 its category, 2 anywhere.
    negatives_Q: for each query the column of the product that serves as its negative pair in the alignment accuracy, -1
    where all candidates are its twins. The counts are of queries: negatives that are not of the query's sub-category,
    and products of which other views are evaluated.
    """

    queries_Q: np.ndarray
    candidates_QC: np.ndarray
    left_out_QC: np.ndarray | None
    truth_Q: np.ndarray
    tier_Q: np.ndarray
    negatives_Q: np.ndarray
    negatives_outside_subcategory: int
    with_other_views: int


class CandidateSampler:
    """Draws queries and candidates from N products.

    Sub-categories are told apart within their category: "Other" of shoes is not "Other" of bags. Rows of one of the
    ``groups`` ("": none) are views of one product: each is a query of its own, whose counterpart is its own title or
    photo, and none is a candidate of another. ``twins``: equal numbers for rows that share a product, a title or a
    photo; no twin serves as the negative pair.
    """

    def __init__(
        self, ids: Sequence[str], categories: Sequence[str], subcategories: Sequence[str], seed: int, *,
        groups: Sequence[str] | None = None, twins: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        self.ids = list(ids)
        own = range(len(self.ids))
        self.view_N = numbered(own if groups is None else (group or row for row, group in enumerate(groups)))
        self.twin_N = np.arange(len(self.ids)) if twins is None else np.asarray(twins)
        self.seed = seed
        self.id_bits_N = np.array([_hash64("product", id_) for id_ in self.ids], dtype=np.uint64)
        self.category_N = numbered(categories)
        self.subcategory_N = numbered(zip(categories, subcategories, strict=True))
        self._tiers: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def queries(self, count: int) -> np.ndarray:
        """``count`` products (all, where there are fewer) drawn by the seed, as ascending positions [Q]."""
        order_N = np.argsort(splitmix64(self.id_bits_N ^ np.uint64(_hash64("queries", self.seed))), kind="stable")
        return np.sort(order_N[:count])

    def others(self, query: int, count: int, *, twins: bool = True) -> tuple[np.ndarray, int]:
        """``count`` other products for ``query``: sub-category first, then category, then anywhere.

        None is another view of the query's product, nor any of its twins where ``twins`` is False.

        Returns their positions, nearest tier first and in drawn order inside a tier, and the last tier that was needed
        (0 sub-category, 1 category, 2 anywhere). Fewer than ``count`` only when there are no more products.
        """
        key = np.uint64(_hash64("candidates", self.seed, self.ids[query]))
        drawn: list[np.ndarray] = []
        kin_N = self.view_N if twins else self.twin_N
        missing, last_tier = count, 0
        for tier, members in enumerate(self._tiers_of(query)):
            if missing == 0:
                break
            pool = members[kin_N[members] != kin_N[query]]
            if len(pool) == 0:
                continue
            priority = splitmix64(self.id_bits_N[pool] ^ key)
            take = min(missing, len(pool))
            first = np.argpartition(priority, take - 1)[:take]
            drawn.append(pool[first[np.argsort(priority[first], kind="stable")]])
            missing -= take
            last_tier = tier
        return (np.concatenate(drawn) if drawn else np.empty(0, dtype=np.int64)), last_tier

    def _tiers_of(self, query: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        subcategory = int(self.subcategory_N[query])
        if subcategory not in self._tiers:
            same_sub_N = self.subcategory_N == subcategory
            same_category_N = self.category_N == self.category_N[query]
            masks = (same_sub_N, same_category_N & ~same_sub_N, ~same_category_N)
            near, further, far = (np.flatnonzero(mask) for mask in masks)
            self._tiers[subcategory] = near, further, far
        return self._tiers[subcategory]


def sampled_lists(sampler: CandidateSampler, queries: int, candidates: int) -> CandidateLists:
    """Protocol "fashionbert": each query against its own counterpart (column 0) and ``candidates - 1`` others.

    Where one query finds fewer others than another, its last columns are left out.
    """
    queries_Q = sampler.queries(queries)
    drawn = [sampler.others(int(query), candidates - 1) for query in queries_Q]
    lengths_Q = np.array([len(others) for others, _ in drawn])
    candidates_QC = np.repeat(queries_Q[:, None], 1 + lengths_Q.max(), axis=1)
    for candidates_C, (others, _) in zip(candidates_QC, drawn, strict=True):
        candidates_C[1 : 1 + len(others)] = others
    left_out_QC = np.arange(candidates_QC.shape[1]) > lengths_Q[:, None]
    stranger_QC = sampler.twin_N[candidates_QC] != sampler.twin_N[queries_Q][:, None]
    negatives_Q = np.where(stranger_QC.any(axis=1), stranger_QC.argmax(axis=1), -1)
    tier_Q = np.array([tier for _, tier in drawn])
    truth_Q = np.zeros(len(queries_Q), dtype=np.int64)
    return lists_of(sampler, queries_Q, candidates_QC, left_out_QC, truth_Q, tier_Q, negatives_Q)


def full_lists(sampler: CandidateSampler, queries: int | None) -> CandidateLists:
    """Protocol "full": each query (None: every product) against every product but the other views of its own."""
    count = len(sampler.ids)
    queries_Q = np.arange(count) if queries is None else sampler.queries(queries)
    drawn = [sampler.others(int(query), 1, twins=False)[0] for query in queries_Q]
    negatives_Q = np.array([others[0] if len(others) else -1 for others in drawn])
    left_out_QC = None
    if _with_other_views(sampler, queries_Q):
        left_out_QC = sampler.view_N[queries_Q][:, None] == sampler.view_N
        np.put_along_axis(left_out_QC, queries_Q[:, None], False, axis=1)  # the truth itself
    return full_lists_of(sampler, queries_Q, left_out_QC, negatives_Q)


def full_lists_of(
    sampler: CandidateSampler, queries_Q: np.ndarray, left_out_QN: np.ndarray | None, negatives_Q: np.ndarray
) -> CandidateLists:
    """Each query against all N products but those that are left out."""
    count = len(sampler.ids)
    candidates_QC = np.broadcast_to(np.arange(count), (len(queries_Q), count))  # a view: no N x N indices in memory
    tier_Q = np.zeros(len(queries_Q), dtype=np.int64)
    return lists_of(sampler, queries_Q, candidates_QC, left_out_QN, queries_Q, tier_Q, negatives_Q)


def lists_of(
    sampler: CandidateSampler,
    queries_Q: np.ndarray,
    candidates_QC: np.ndarray,
    left_out_QC: np.ndarray | None,
    truth_Q: np.ndarray,
    tier_Q: np.ndarray,
    negatives_Q: np.ndarray,
) -> CandidateLists:
    """The lists with what is counted of them."""
    negative_Q = candidates_QC[np.arange(len(queries_Q)), negatives_Q]
    outside_Q = sampler.subcategory_N[negative_Q] != sampler.subcategory_N[queries_Q]
    return CandidateLists(
        queries_Q,
        candidates_QC,
        left_out_QC=None if left_out_QC is None or not left_out_QC.any() else left_out_QC,
        truth_Q=truth_Q,
        tier_Q=tier_Q,
        negatives_Q=negatives_Q,
        negatives_outside_subcategory=int((outside_Q & (negatives_Q >= 0)).sum()),
        with_other_views=_with_other_views(sampler, queries_Q),
    )


def _with_other_views(sampler: CandidateSampler, queries_Q: np.ndarray) -> int:
    return int((np.bincount(sampler.view_N)[sampler.view_N[queries_Q]] > 1).sum())
