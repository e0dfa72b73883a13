"""Pairs and order: who meets whom, what it depends on and what it must not."""

from __future__ import annotations

import numpy as np
import pytest

from fashionbert_fast.data.sampling import plan_epoch

ROWS = np.arange(100, 173)  # 73 products: odd groups
GROUPS = np.arange(73) % 5


def _plan(rows=ROWS, groups=GROUPS, twins=None, *, seed=0, epoch=0, **options):
    return plan_epoch(rows, groups, rows if twins is None else twins, seed=seed, epoch=epoch, **options)


def _group_of(rows):
    return GROUPS[rows - 100]


def _views(seed: int, products: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, groups and twins of products with one to six views each, in groups of one to many products."""
    draw = np.random.default_rng(seed)
    twins = np.repeat(np.arange(products) * 7 + 3, draw.integers(1, 7, products))
    groups = (draw.integers(0, 4, products * 7 + 4) ** 3)[twins]
    groups[twins == 3] = 1000  # a group of one product's views
    shuffle = draw.permutation(len(twins))
    return np.arange(len(twins)) + 50, groups[shuffle], twins[shuffle]


@pytest.mark.parametrize("pairs", ["coin", "both"])
def test_each_product_once_or_twice_and_negatives_share_the_group(pairs):
    plan = _plan(seed=3, pairs=pairs)
    assert sorted(plan.text_rows) == sorted(np.repeat(ROWS, 2 if pairs == "both" else 1))
    assert (plan.text_rows == plan.image_rows).tolist() == plan.is_match.tolist()
    assert (_group_of(plan.text_rows) == _group_of(plan.image_rows)).all()
    assert 0.3 < plan.is_match.mean() < 0.7


def test_a_negative_finds_its_image_in_the_same_even_batch():
    """The pairs stand at even places, in this and any larger even batch; singles of odd groups in twos among them."""
    for epoch in range(5):
        plan = _plan(epoch=epoch, negative_rate=1.0)
        assert len(plan.text_rows) == 73
        texts, images = plan.text_rows[:72].reshape(36, 2), plan.image_rows[:72].reshape(36, 2)
        neighbours = (images == texts[:, ::-1]).all(1)
        assert neighbours.sum() >= 33  # at most 5 odd groups, and one pair broken where the last product had a partner
        assert (_group_of(texts[neighbours][:, 0]) == _group_of(texts[neighbours][:, 1])).all()


def test_both_puts_the_four_combinations_side_by_side():
    plan = _plan(rows=ROWS[:70], groups=GROUPS[:70], pairs="both")
    for start in range(0, 140, 4):
        texts, images = plan.text_rows[start : start + 4], plan.image_rows[start : start + 4]
        a, b = texts[0], texts[2]
        assert list(zip(texts, images, strict=True)) == [(a, a), (a, b), (b, b), (b, a)]


def test_depends_on_seed_and_epoch_alone():
    first, again = _plan(seed=1), _plan(seed=1)
    assert (first.text_rows == again.text_rows).all()
    assert (first.image_rows == again.image_rows).all()
    for other in (_plan(seed=2), _plan(seed=1, epoch=1)):
        assert (first.text_rows != other.text_rows).any()
        assert (first.is_match != other.is_match).any()


def test_the_plan_is_pinned():
    """A run can be repeated years later, on another machine: what is drawn must not change."""
    plan = _plan(np.arange(9), np.array([0, 0, 0, 0, 1, 1, 1, 2, 2]), np.array([0, 1, 2, 0, 4, 5, 6, 7, 7]), epoch=2)
    assert plan.text_rows.tolist() == [5, 6, 2, 0, 1, 3, 7, 8, 4]
    assert plan.image_rows.tolist() == [6, 6, 0, 2, 3, 1, 4, 3, 5]


def test_order_of_the_rows_does_not_matter():
    rows, groups, twins = _views(0)
    shuffle = np.random.default_rng(0).permutation(len(rows))
    plan, other = _plan(rows, groups, twins), _plan(rows[shuffle], groups[shuffle], twins[shuffle])
    assert plan.text_rows.tolist() == other.text_rows.tolist()
    assert plan.image_rows.tolist() == other.image_rows.tolist()


def test_every_product_reaches_the_batches_alike():
    """100 products of one group, one alone in its own, two views of one product: incomplete batches are dropped."""
    rows, groups, twins = np.arange(103), np.repeat([0, 1, 2], [100, 1, 2]), np.append(np.arange(102), 101)
    used = np.zeros(103)
    for epoch in range(400):
        used[_plan(rows, groups, twins, epoch=epoch).text_rows[: 103 // 8 * 8]] += 1
    expected = 400 * 96 / 103
    assert np.abs(used - expected).max() < 25  # five standard deviations


@pytest.mark.parametrize("pairs", ["coin", "both"])
@pytest.mark.parametrize("seed", range(4))
def test_twins_are_never_each_other_s_negatives(pairs, seed):
    rows, groups, twins = _views(seed)
    group_of, twin_of = dict(zip(rows, groups, strict=True)), dict(zip(rows, twins, strict=True))
    for epoch in range(10):
        plan = _plan(rows, groups, twins, seed=seed, epoch=epoch, pairs=pairs, negative_rate=1.0)
        assert sorted(plan.text_rows) == sorted(np.repeat(rows, 2 if pairs == "both" else 1))
        negatives = list(zip(plan.text_rows[~plan.is_match], plan.image_rows[~plan.is_match], strict=True))
        assert len(negatives) == len(rows)
        assert all(twin_of[text] != twin_of[image] for text, image in negatives)
        other_group = {twin_of[text] for text, image in negatives if group_of[text] != group_of[image]}
        assert other_group == {3}  # the views that have a group to themselves, and no others


def test_a_group_is_paired_as_far_as_twins_allow():
    """Of 10 products 6 are one another's twins: four pairs, and two twins left over that meet others all the same."""
    rows, twins = np.arange(10), np.array([0] * 6 + [6, 7, 8, 9])
    plan = _plan(rows, np.zeros(10, int), twins, negative_rate=1.0)
    texts, images = plan.text_rows.reshape(5, 2), plan.image_rows.reshape(5, 2)
    assert (images == texts[:, ::-1]).all(1).sum() == 4
    assert (twins[plan.text_rows] != twins[plan.image_rows]).all()


def test_all_that_are_no_twins_meet():
    """Six products, two of them twins: over many epochs each meets every other but its twin, nearly equally often."""
    rows, twins = np.arange(6), np.array([0, 0, 2, 3, 4, 5])
    met = np.zeros((6, 6), dtype=int)
    for epoch in range(2000):
        plan = _plan(rows, np.zeros(6, int), twins, epoch=epoch, negative_rate=1.0)
        met[plan.text_rows, plan.image_rows] += 1
    assert met[0, 1] == met[1, 0] == met.diagonal().sum() == 0
    assert (met == met.T).all()
    others = met[~np.eye(6, dtype=bool) & (twins[:, None] != twins)]
    assert others.min() > 200 and others.max() < 650  # 2,000 meetings of each product with four or five others


def test_a_product_alone_in_its_group_takes_a_negative_from_elsewhere():
    plan = _plan(np.arange(3), np.array([0, 0, 1]), negative_rate=1.0)
    assert not plan.is_match.any()
    assert (plan.text_rows != plan.image_rows).all()


def test_without_anyone_but_twins_all_are_matches():
    assert _plan(np.array([7]), np.array([0]), negative_rate=1.0).is_match.all()
    for pairs in ("coin", "both"):
        plan = _plan(np.arange(5), np.array([0, 0, 0, 1, 1]), np.full(5, 2), negative_rate=1.0, pairs=pairs)
        assert plan.is_match.all() and (plan.text_rows == plan.image_rows).all()
