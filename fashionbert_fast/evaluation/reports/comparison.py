"""Is one model better than another? Both have answered the same queries, so what counts is each query's difference.

Shapes: Q queries, K of them that differ, R resamples.

Recall by McNemar's exact test: of the queries that only one of the two found, each would be either's with probability
one half if the models were equally good. Mean reciprocal rank and alignment accuracy by a permutation test: the sign of
each query's difference is drawn at random. Both tests are two-sided. The interval of the difference is a paired
bootstrap's, over the queries.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fashionbert_fast.errors import InputError
from fashionbert_fast.evaluation.ranking.intervals import interval, means
from fashionbert_fast.evaluation.ranking.protocols import DIRECTIONS
from fashionbert_fast.evaluation.ranking.ranks import RECALLS
from fashionbert_fast.evaluation.reports.scores import QueryScores

PERMUTATIONS = 10_000
CHUNK = 1 << 22  # signs held at once


def compare(a: QueryScores, b: QueryScores, *, seed: int = 0) -> dict[str, Any]:
    """Every figure of both with the difference b - a, its 95% interval and its p-value.

    Raises:
        InputError: the two did not answer the same questions.
    """
    check_same_questions(a, b)
    rows = []
    for direction in DIRECTIONS:
        values_a, values_b = a.ranks[direction].values_QM(), b.ranks[direction].values_QM()
        for i, metric in enumerate([*(f"R@{k}" for k in RECALLS), "MRR"]):
            rows.append({"direction": direction, "metric": metric} | paired(values_a[:, i], values_b[:, i], seed))
    asked_Q = ~np.isnan(a.right_Q) & ~np.isnan(b.right_Q)
    if asked_Q.any():
        accuracy = paired(a.right_Q[asked_Q], b.right_Q[asked_Q], seed)
        rows.append({"direction": "both", "metric": "alignment accuracy"} | accuracy)
    return {"a": a.run, "b": b.run, "lists": a.lists, "queries": len(a.queries), "seed": seed, "rows": rows}


def check_same_questions(a: QueryScores, b: QueryScores) -> None:
    """InputError unless both answered the same."""
    if (a.lists, a.queries) != (b.lists, b.queries):
        raise InputError(
            f"{b.path}: other candidate lists than {a.path} ({b.lists[:12]}, {a.lists[:12]}); evaluate both with "
            "--candidates-from one file"
        )


def paired(a_Q: np.ndarray, b_Q: np.ndarray, seed: int) -> dict[str, Any]:
    """A figure that is the mean over queries of what ``a_Q`` and ``b_Q`` say of each: its difference b - a with its 95%
    interval and p-value, and on how many queries b is better and worse."""
    difference_Q = b_Q - a_Q
    exact = set(np.unique(difference_Q).tolist()) <= {-1.0, 0.0, 1.0}
    ((low, high),) = interval(means(difference_Q[:, None]), len(difference_Q), seed=seed).tolist()
    return {
        "a": float(a_Q.mean()),
        "b": float(b_Q.mean()),
        "difference": float(difference_Q.mean()),
        "interval": [low, high],
        "p": mcnemar(difference_Q) if exact else permutation(difference_Q, seed=seed),
        "test": "McNemar, exact" if exact else "permutation",
        "queries": len(difference_Q),
        "better": int((difference_Q > 0).sum()),
        "worse": int((difference_Q < 0).sum()),
    }


def mcnemar(difference_Q: np.ndarray) -> float:
    """The exact two-sided p-value of differences -1, 0 and 1."""
    better, worse = int((difference_Q > 0).sum()), int((difference_Q < 0).sum())
    K = better + worse
    return min(1.0, 2 * sum(math.comb(K, i) for i in range(min(better, worse) + 1)) / 2**K)


def permutation(difference_Q: np.ndarray, *, seed: int, permutations: int = PERMUTATIONS) -> float:
    """The two-sided p-value of the mean difference under random signs; no smaller than 1 / (permutations + 1)."""
    difference_K = difference_Q[difference_Q != 0]
    if len(difference_K) == 0:
        return 1.0
    generator = np.random.default_rng(seed)
    least, step, as_large = abs(difference_K.sum()) * (1 - 1e-12), max(1, CHUNK // len(difference_K)), 0
    for start in range(0, permutations, step):
        sign_RK = generator.integers(2, size=(min(step, permutations - start), len(difference_K))) * 2 - 1
        as_large += int((abs(sign_RK @ difference_K) >= least).sum())
    return (as_large + 1) / (permutations + 1)
