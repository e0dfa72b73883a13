"""Ranks and recall from scores.

Shapes: Q queries, C candidates of a query, R rows of a result file (one scored pair each).

Ties are resolved against the model: a truth that ties with t other candidates, behind b better ones, has rank
b + 1 + t, the worst of those it could have. A scorer that says the same of every pair therefore finds nothing, R@k = 0
for k < C; what breaking ties at random would give on average stands beside (`Ranks.random_recall`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RECALLS = (1, 5, 10)
RELEASED_BATCH_SIZE = 64


@dataclass(frozen=True)
class Ranks:
    """Where the truth of each query stands: how many candidates score higher, how many others score the same."""

    better_Q: np.ndarray
    tied_Q: np.ndarray

    def of(self, chosen_Q: np.ndarray) -> Ranks:
        """The ranks of the chosen queries, bool or indices."""
        return Ranks(self.better_Q[chosen_Q], self.tied_Q[chosen_Q])

    @property
    def rank_Q(self) -> np.ndarray:
        """Rank of each truth, int64 [Q], 1 at the top; the last of those it ties with."""
        return self.better_Q + self.tied_Q + 1

    def found_Q(self, k: int) -> np.ndarray:
        """Whether the truth of each query is among its first k, bool [Q]."""
        return self.rank_Q <= k

    def recall(self, k: int) -> float:
        """R@k, a fraction: the mean of ``found_Q(k)``. ValueError without a query."""
        if len(self.better_Q) == 0:
            raise ValueError("recall: there is no query")
        return float(self.found_Q(k).mean())

    def random_recall(self, k: int) -> float:
        """What R@k would be on average if each tie were broken at random: no less than `recall`."""
        return float(np.clip((k - self.better_Q) / (self.tied_Q + 1), 0.0, 1.0).mean())

    def values_QM(self) -> np.ndarray:
        """What the figures that are means over queries are means of: a column for each of `RECALLS`, then 1 / rank."""
        return np.stack([*(self.found_Q(k) for k in RECALLS), 1 / self.rank_Q], axis=1).astype(np.float64)


def ranks(scores_QC: np.ndarray, truth_Q: np.ndarray) -> Ranks:
    """Rank the truth of each query among its candidates.

    scores_QC: scores, higher is better, any float dtype. truth_Q: the column of the true candidate, int.
    ValueError when a score is NaN: a NaN compares false with everything and would pass for a perfect rank.
    """
    if scores_QC.ndim != 2 or truth_Q.shape != scores_QC.shape[:1]:
        raise ValueError(f"scores_QC {scores_QC.shape} and truth_Q {truth_Q.shape}: expected [Q, C] and [Q]")
    if np.isnan(scores_QC).any():
        raise ValueError(f"scores_QC: {int(np.isnan(scores_QC).sum())} of {scores_QC.size} scores are NaN")
    true_Q1 = np.take_along_axis(scores_QC, truth_Q[:, None], axis=1)
    better_Q = (scores_QC > true_Q1).sum(axis=1)
    tied_Q = (scores_QC == true_Q1).sum(axis=1) - 1  # the truth ties with itself
    return Ranks(better_Q, tied_Q)


def released_faulty_recall(
    query_ids_R: Sequence[str],
    is_truth_R: np.ndarray,
    scores_R: np.ndarray,
    *,
    batch_size: int = RELEASED_BATCH_SIZE,
    ks: Sequence[int] = (*RECALLS, 100),
) -> dict[str, float]:
    """Recall under the faulty grouping of the released evaluator: only for comparing with published tables.

    The released evaluator writes each batch of predictions as a printed list of ids, ``[a, b, c]``, and reads it back
    by splitting on "," without stripping the blank. The first id of a batch comes back as "a", every other as " b", and
    rows are grouped by that string: the first row of every batch becomes another query. Each query whose rows hold the
    start of a batch is then counted twice, and only one of its two groups can hold the truth. 101 candidates in batches
    of 64 always hold a start, so twice as many groups as truths remain: a perfect scorer gets R@1 = R@100 = 0.50.

    query_ids_R, is_truth_R (bool), scores_R: the rows in the order of the predictions, query after query.
    batch_size: rows of a prediction batch (the released script's is 64). Ties are treated as in ``Ranks``, so that what
    differs from the correct recall is the grouping alone. ValueError on NaN scores or unequal lengths.
    """
    if not len(query_ids_R) == len(is_truth_R) == len(scores_R):
        raise ValueError("released_faulty_recall: query_ids_R, is_truth_R and scores_R differ in length")
    groups: dict[str, list[int]] = defaultdict(list)
    for row, query_id in enumerate(query_ids_R):
        groups[query_id if row % batch_size == 0 else " " + query_id].append(row)
    hits = dict.fromkeys(ks, 0.0)
    for members in groups.values():
        true_members = np.flatnonzero(is_truth_R[members])
        if len(true_members) == 0:  # the truth went to the other half: counted as a miss at every k
            continue
        found = ranks(scores_R[members][None], true_members[:1])
        for k in ks:
            hits[k] += float(found.found_Q(k)[0])
    return {f"R@{k}": hits[k] / len(groups) for k in ks}
