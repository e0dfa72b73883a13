"""How far a figure would move with other queries: 95% intervals by bootstrap.

Shapes: Q queries, R resamples of a chunk, M figures.

A resample draws Q queries with replacement; it is held as how often each was drawn, so that a figure is a function of
weights: ``statistic(weights_RQ) -> (R, M)``. Weights of 1 give the figure itself, so figure and interval cannot part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

DRAWS = 2000
LEVEL = 0.95
CHUNK = 1 << 22  # weights held at once: 32 MiB

Statistic = Callable[[np.ndarray], np.ndarray]


def resamples(count: int, *, seed: int, draws: int = DRAWS) -> Iterator[np.ndarray]:
    """``draws`` resamples of ``count`` queries, float64 (R, Q) at a time; the same for the same count and seed."""
    generator = np.random.default_rng(seed)
    step = max(1, CHUNK // count)
    for start in range(0, draws, step):
        size = min(step, draws - start)
        drawn = generator.integers(count, size=(size, count)) + np.arange(size)[:, None] * count
        yield np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)


def figures(statistic: Statistic, count: int) -> np.ndarray:
    """The statistic of the queries as they are, (M,)."""
    return statistic(np.ones((1, count)))[0]


def interval(statistic: Statistic, count: int, *, seed: int, draws: int = DRAWS) -> np.ndarray:
    """Percentile bootstrap: (M, 2), lower and upper end of the 95% interval of each figure."""
    drawn_DM = np.concatenate([statistic(weights_RQ) for weights_RQ in resamples(count, seed=seed, draws=draws)])
    return np.quantile(drawn_DM, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0).T


def mean_intervals(values_QM: np.ndarray, *, seed: int, draws: int = DRAWS) -> np.ndarray:
    """`interval` of the mean of each column of values between 0 and 1, (M, 2).

    Where all are 0, or all 1, no resample differs, and nothing would seem sure to be never (always) so: there the other
    end is Clopper and Pearson's, the mean at which Q such queries in a row have a probability of 2.5%.
    """
    count = len(values_QM)
    ends_M2 = interval(means(values_QM), count, seed=seed, draws=draws)
    exact = ((1 - LEVEL) / 2) ** (1 / count)
    ends_M2[(values_QM == 0).all(axis=0), 1] = 1 - exact
    ends_M2[(values_QM == 1).all(axis=0), 0] = exact
    return ends_M2


def means(values_QM: np.ndarray) -> Statistic:
    """The mean of each column."""
    return lambda weights_RQ: weights_RQ @ values_QM / weights_RQ.sum(axis=1, keepdims=True)


def median(values_Q: np.ndarray) -> Statistic:
    """The median, as `np.median`: between the two in the middle where the number is even; one column."""
    order_Q = np.argsort(values_Q, kind="stable")
    sorted_Q = np.asarray(values_Q, dtype=np.float64)[order_Q]

    def of(weights_RQ: np.ndarray) -> np.ndarray:
        upto_RQ = weights_RQ[:, order_Q].cumsum(axis=1)
        total_R1 = upto_RQ[:, -1:]
        lower_R, upper_R = ((upto_RQ > middle).argmax(axis=1) for middle in ((total_R1 - 1) // 2, total_R1 // 2))
        return ((sorted_Q[lower_R] + sorted_Q[upper_R]) / 2)[:, None]

    return of
