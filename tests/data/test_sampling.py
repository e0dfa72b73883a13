"""Pairs and order: who meets whom, what it depends on and what it must not."""

from __future__ import annotations

import numpy as np
import pytest

from fashionbert_fast.data.sampling import plan_epoch

ROWS = np.arange(100, 173)  # 73 products: odd groups
GROUPS = np.arange(73) % 5


def _group_of(rows):
    return GROUPS[rows - 100]


@pytest.mark.parametrize("way", ["coin", "both"])
def test_each_product_once_or_twice_and_negatives_share_the_group(way):
    plan = plan_epoch(ROWS, GROUPS, seed=3, epoch=0, way=way)
    assert sorted(plan.text_rows) == sorted(np.repeat(ROWS, 2 if way == "both" else 1))
    assert (plan.text_rows == plan.image_rows).tolist() == plan.is_match.tolist()
    assert (_group_of(plan.text_rows) == _group_of(plan.image_rows)).all()
    assert 0.3 < plan.is_match.mean() < 0.7


def test_a_negative_finds_its_image_in_the_same_even_batch():
    plan = plan_epoch(ROWS, GROUPS, seed=0, epoch=4, negative_rate=1.0)
    for start in range(0, 60, 4):  # singles of odd groups come last
        span = slice(start, start + 4)
        assert set(plan.image_rows[span]) <= set(plan.text_rows[span])


def test_both_puts_the_four_combinations_side_by_side():
    plan = plan_epoch(ROWS, GROUPS, seed=0, epoch=0, way="both")
    for start in range(0, 120, 4):
        texts, images = plan.text_rows[start : start + 4], plan.image_rows[start : start + 4]
        a, b = texts[0], texts[2]
        assert list(zip(texts, images, strict=True)) == [(a, a), (a, b), (b, b), (b, a)]


def test_depends_on_seed_and_epoch_alone():
    first = plan_epoch(ROWS, GROUPS, seed=1, epoch=0)
    again = plan_epoch(ROWS, GROUPS, seed=1, epoch=0)
    assert (first.text_rows == again.text_rows).all()
    assert (first.image_rows == again.image_rows).all()
    for other in (plan_epoch(ROWS, GROUPS, seed=2, epoch=0), plan_epoch(ROWS, GROUPS, seed=1, epoch=1)):
        assert (first.text_rows != other.text_rows).any()
        assert (first.is_match != other.is_match).any()


def test_pairing_ignores_the_order_rows_come_in():
    order = np.random.default_rng(0).permutation(len(ROWS))
    a, b = plan_epoch(ROWS, GROUPS, seed=1, epoch=0), plan_epoch(ROWS[order], GROUPS[order], seed=1, epoch=0)
    assert dict(zip(a.text_rows, a.image_rows, strict=True)) == dict(zip(b.text_rows, b.image_rows, strict=True))


def test_a_product_alone_in_its_group_takes_a_negative_from_elsewhere():
    plan = plan_epoch(np.arange(3), np.array([0, 0, 1]), seed=0, epoch=0, negative_rate=1.0)
    assert not plan.is_match.any()
    assert (plan.text_rows != plan.image_rows).all()


def test_a_single_product_is_always_a_match():
    assert plan_epoch(np.array([7]), np.array([0]), seed=0, epoch=0, negative_rate=1.0).is_match.all()
