"""Thresholds and weights: numbers worked by hand, and the best that scikit-learn's ROC curve has."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special
from sklearn.metrics import roc_curve

from fashionbert_fast.evaluation.ranking.calibration import (
    WEIGHTS,
    choose_weight,
    learn_threshold,
    logit,
    scale_of,
    summed,
)


@pytest.mark.parametrize(
    ("own", "other", "threshold", "why"),
    [
        ([2, 3], [0, 1], 1.5, "the middle between sides that are apart"),
        ([3, 5, 7], [1, 2, 4], 2.5, "5 of 6 between 2 and 3, and between 4 and 5: as wide, the lower"),
        ([3, 6, 7], [1, 2, 4], 5.0, "5 of 6 between 2 and 3, and between 4 and 6: the wider"),
        ([1], [0, 0, 0, 2, 2], 0.5, "each side is one half: 0.8, where 5 of 6 pairs are right above all"),
        ([4, 4], [4, 4, 4], 4.0, "nothing to tell apart: nothing lies above"),
        ([0], [1], 1.0, "no threshold is better than a guess: nothing lies above"),
        ([41], [40], 40.5, "sigmoids of both are 1"),
        ([-3], [-5], -4.0, "below zero"),
        ([np.nextafter(1, 2)], [1.0], 1.0, "no number lies between: the lower, and the own one lies above"),
    ],
)
def test_thresholds_worked_by_hand(own, other, threshold, why):
    assert learn_threshold(np.array(own, np.float64), np.array(other, np.float64)) == threshold, why


def test_no_threshold_is_more_accurate():
    generator = np.random.default_rng(0)
    for _ in range(50):
        own = generator.integers(0, 12, generator.integers(1, 40)) / 7 + 0.2
        other = generator.integers(0, 10, generator.integers(1, 40)) / 7 + 0.2
        threshold = learn_threshold(own, other)
        labels = np.repeat([1, 0], [len(own), len(other)])
        false, true, _ = roc_curve(labels, np.concatenate([own, other]), drop_intermediate=False)
        found = ((own > threshold).mean() + (other <= threshold).mean()) / 2
        assert found == pytest.approx((true + 1 - false).max() / 2, abs=1e-12)


@pytest.mark.parametrize(("own", "other"), [([], [1.0]), ([1.0], []), ([1.0, np.nan], [0.0]), ([1.0], [np.nan])])
def test_nothing_is_learnt_of_nothing(own, other):
    with pytest.raises(ValueError, match=f"{len(own)} own and {len(other)} other scores"):
        learn_threshold(np.array(own), np.array(other))


def test_logits_are_those_of_scipy_and_finite():
    p = np.array([0.5, 1e-300, 1e-9, 0.3, 1 - 1e-9, 1 - 2.0**-53])
    np.testing.assert_allclose(logit(p), special.logit(p), rtol=1e-15)
    assert logit(np.array(0.5)) == 0
    ends = logit(np.array([0.0, 1.0]))
    assert np.isfinite(ends).all() and ends[0] < -700 and ends[1] > 36


def test_a_sum_worked_by_hand():
    """3/4 of logit(0.8) / 2 = ln 4 / 2, and 1/4 of 0.6 / 0.5."""
    found = summed(logit(np.array([0.8])), np.array([0.6], np.float32), 2.0, 0.5, 0.25)
    assert found[0] == pytest.approx(0.75 * np.log(4) / 2 + 0.25 * float(np.float32(0.6)) / 0.5, rel=1e-14)
    assert (scale_of(np.array([1.0, 3.0])), scale_of(np.array([7.0, 7.0]))) == (1.0, 1.0)
    assert scale_of(np.array([2.0, 8.0])) == 3.0


def test_the_weight_is_the_best_one_and_near_one_half_where_several_are():
    assert (WEIGHTS[0], WEIGHTS[-1]) == (0, 1)
    assert choose_weight(lambda weight: -abs(weight - 0.85)) == 0.85
    assert choose_weight(lambda weight: 1.0) == 0.5
    assert choose_weight(lambda weight: weight >= 0.7) == 0.7
    assert choose_weight(lambda weight: weight <= 0.1) == 0.1
    assert choose_weight(lambda weight: weight in (0.25, 0.75)) == 0.25
