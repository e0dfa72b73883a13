"""Intervals: of weights, of means and medians, and that 95% of them hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from fashionbert_fast.evaluation.ranking import intervals
from fashionbert_fast.evaluation.ranking.intervals import figures, interval, mean_intervals, means, median, resamples


def test_figures_are_numpys():
    rng = np.random.default_rng(0)
    for count in (1, 2, 7, 8, 101):
        values_QM = rng.integers(0, 5, (count, 3)).astype(float)
        assert figures(means(values_QM), count) == pytest.approx(values_QM.mean(0))
        assert figures(median(values_QM[:, 0]), count) == np.median(values_QM[:, 0])


def test_a_weight_of_two_is_the_query_twice():
    values_Q, weights_Q = np.array([5.0, 1.0, 9.0, 3.0]), np.array([2, 0, 1, 3])
    repeated = np.repeat(values_Q, weights_Q)
    assert means(values_Q[:, None])(weights_Q[None].astype(float))[0, 0] == repeated.mean()
    assert median(values_Q)(weights_Q[None].astype(float))[0, 0] == np.median(repeated)


def test_resamples_draw_as_many_and_do_not_depend_on_the_chunk(monkeypatch):
    whole = np.concatenate(list(resamples(50, seed=1, draws=30)))
    assert whole.shape == (30, 50) and (whole.sum(axis=1) == 50).all()
    monkeypatch.setattr(intervals, "CHUNK", 50 * 7)
    assert (np.concatenate(list(resamples(50, seed=1, draws=30))) == whole).all()
    assert (np.concatenate(list(resamples(50, seed=2, draws=30))) != whole).any()


def test_95_of_100_intervals_hold_what_they_are_of():
    """Of a recall of 0.3 and the median of ranks 1 to 101, by 200 queries: 300 experiments of each."""
    rng = np.random.default_rng(0)
    held = np.zeros(2)
    for seed in range(300):
        found_Q1 = (rng.random((200, 1)) < 0.3).astype(float)
        ((low, high),) = interval(means(found_Q1), 200, seed=seed, draws=400)
        held[0] += low <= 0.3 <= high
        ((low, high),) = interval(median(rng.integers(1, 102, 200)), 200, seed=seed, draws=400)
        held[1] += low <= 51 <= high
    assert (held / 300 > 0.91).all() and (held / 300 < 0.985).all()


def test_what_always_or_never_happened_has_an_interval_too():
    ends_M2 = mean_intervals(np.array([[0.0, 1.0, 0.5, 0.0]] * 59 + [[0.0, 1.0, 0.5, 1.0]]), seed=0)
    assert ends_M2[0] == pytest.approx([0, 1 - 0.025 ** (1 / 60)])
    assert ends_M2[1] == pytest.approx([0.025 ** (1 / 60), 1])
    assert ends_M2[2].tolist() == [0.5, 0.5] and ends_M2[3, 0] == 0 < ends_M2[3, 1] < 0.1
