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

from fashionbert_fast.data.sampling import numbered


def _hash64(*parts: object) -> int:
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _mix(bits: np.ndarray) -> np.ndarray:
    """splitmix64: spreads uint64 over uint64, so that a key xor an id orders the ids anew for every key."""
    bits = bits + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


@dataclass(frozen=True)
class CandidateLists:
    """The candidates of each query, as positions 0 .. N - 1 in the evaluated rows.

    queries_Q: the query products. candidates_QC: their candidates, the truth among them at column truth_Q.
    negatives_Q: for each query the column of the product that serves as its negative pair in the alignment accuracy.
    The counts are of queries: lists that needed the category, lists that needed products from anywhere, and negatives
    that are not of the query's sub-category.
    """

    queries_Q: np.ndarray
    candidates_QC: np.ndarray
    truth_Q: np.ndarray
    negatives_Q: np.ndarray
    topped_up_from_category: int = 0
    topped_up_from_anywhere: int = 0
    negatives_outside_subcategory: int = 0


class CandidateSampler:
    """Draws queries and candidates from N products.

    Sub-categories are told apart within their category: "Other" of shoes is not "Other" of bags.
    """

    def __init__(self, ids: Sequence[str], categories: Sequence[str], subcategories: Sequence[str], seed: int) -> None:
        self.ids = list(ids)
        self.seed = seed
        self.id_bits_N = np.array([_hash64("product", id_) for id_ in self.ids], dtype=np.uint64)
        self.category_N = numbered(categories)
        self.subcategory_N = numbered(zip(categories, subcategories, strict=True))
        self._tiers: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def queries(self, count: int) -> np.ndarray:
        """``count`` products (all, where there are fewer) drawn by the seed, as ascending positions [Q]."""
        order_N = np.argsort(_mix(self.id_bits_N ^ np.uint64(_hash64("queries", self.seed))), kind="stable")
        return np.sort(order_N[:count])

    def others(self, query: int, count: int) -> tuple[np.ndarray, int]:
        """``count`` other products for ``query``: sub-category first, then category, then anywhere.

        Returns their positions, nearest tier first and in drawn order inside a tier, and the last tier that was needed
        (0 sub-category, 1 category, 2 anywhere). Fewer than ``count`` only when there are no more products.
        """
        key = np.uint64(_hash64("candidates", self.seed, self.ids[query]))
        drawn: list[np.ndarray] = []
        missing, last_tier = count, 0
        for tier, members in enumerate(self._tiers_of(query)):
            pool = members[members != query] if tier == 0 else members
            if missing == 0:
                break
            if len(pool) == 0:
                continue
            priority = _mix(self.id_bits_N[pool] ^ key)
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
            self._tiers[subcategory] = tuple(np.flatnonzero(mask) for mask in masks)
        return self._tiers[subcategory]


def sampled_lists(sampler: CandidateSampler, queries: int, candidates: int) -> CandidateLists:
    """Protocol "fashionbert": each query against its own counterpart (column 0) and ``candidates - 1`` others."""
    queries_Q = sampler.queries(queries)
    drawn = [sampler.others(int(query), candidates - 1) for query in queries_Q]
    others_QC = np.stack([others for others, _ in drawn])
    tiers_Q = np.array([tier for _, tier in drawn])
    return CandidateLists(
        queries_Q,
        candidates_QC=np.concatenate([queries_Q[:, None], others_QC], axis=1),
        truth_Q=np.zeros(len(queries_Q), dtype=np.int64),
        negatives_Q=np.ones(len(queries_Q), dtype=np.int64),
        topped_up_from_category=int((tiers_Q == 1).sum()),
        topped_up_from_anywhere=int((tiers_Q == 2).sum()),
        negatives_outside_subcategory=_strangers(sampler, queries_Q, others_QC[:, 0]),
    )


def full_lists(sampler: CandidateSampler, queries: int | None) -> CandidateLists:
    """Protocol "full": each query (None: every product) against every product."""
    count = len(sampler.ids)
    queries_Q = np.arange(count) if queries is None else sampler.queries(queries)
    negatives_Q = np.array([sampler.others(int(query), 1)[0][0] for query in queries_Q])
    return CandidateLists(
        queries_Q,
        candidates_QC=np.broadcast_to(np.arange(count), (len(queries_Q), count)),  # a view: no N x N indices in memory
        truth_Q=queries_Q,
        negatives_Q=negatives_Q,
        negatives_outside_subcategory=_strangers(sampler, queries_Q, negatives_Q),
    )


def _strangers(sampler: CandidateSampler, queries_Q: np.ndarray, negatives_Q: np.ndarray) -> int:
    return int((sampler.subcategory_N[negatives_Q] != sampler.subcategory_N[queries_Q]).sum())
