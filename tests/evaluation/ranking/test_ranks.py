from __future__ import annotations

import numpy as np
import pytest

from fashionbert_fast.evaluation.ranking.ranks import ranks, released_faulty_recall


def test_hand_computed_ranks_and_recall():
    scores_QC = np.array([[0.9, 0.1, 0.2], [0.5, 0.9, 0.1], [0.3, 0.2, 0.3], [0.1, 0.2, 0.3]])
    found = ranks(scores_QC, np.array([0, 0, 0, 0]))
    assert found.better_Q.tolist() == [0, 1, 0, 2]
    assert found.tied_Q.tolist() == [0, 0, 1, 0]
    assert found.rank_Q.tolist() == [1, 2, 2, 3]
    assert (found.recall(1), found.recall(2), found.recall(10)) == (1 / 4, 3 / 4, 1.0)
    assert (found.random_recall(1), found.random_recall(2)) == (1.5 / 4, 3 / 4)
    assert found.values_QM().tolist() == [[1, 1, 1, 1], [0, 1, 1, 1 / 2], [0, 1, 1, 1 / 2], [0, 1, 1, 1 / 3]]


def test_truth_in_any_column():
    assert ranks(np.array([[3.0, 2.0, 1.0]] * 3), np.array([0, 1, 2])).rank_Q.tolist() == [1, 2, 3]


def test_a_constant_scorer_finds_nothing_and_chance_where_ties_are_broken_at_random():
    found = ranks(np.zeros((7, 101)), np.zeros(7, dtype=int))
    for k in (1, 5, 10):
        assert found.recall(k) == 0
        assert found.random_recall(k) == pytest.approx(k / 101, abs=1e-15)
    assert found.rank_Q.tolist() == [101] * 7


def test_no_breaking_of_ties_gives_less_and_random_ones_give_the_expectation():
    rng = np.random.default_rng(0)
    scores_QC = rng.integers(0, 4, (3, 9)).astype(float)  # four values over nine candidates: ties everywhere
    truth_Q = np.array([0, 4, 8])
    draws = 20_000
    jitter = rng.random((draws, 3, 9)) * 0.5
    jittered = scores_QC + jitter
    own = np.take_along_axis(jittered, np.broadcast_to(truth_Q[None, :, None], (draws, 3, 1)), axis=2)
    rank = (jittered > own).sum(axis=2) + 1
    found = ranks(scores_QC, truth_Q)
    assert (rank.max(axis=0) == found.rank_Q).all() and (found.tied_Q > 0).any()
    for k in (1, 3, 5):
        assert found.random_recall(k) == pytest.approx((rank <= k).mean(), abs=0.01)


def test_nan_scores_raise_and_do_not_rank():
    scores_QC = np.array([[np.nan, 0.1], [0.2, 0.3]])
    with pytest.raises(ValueError, match="1 of 4 scores are NaN"):
        ranks(scores_QC, np.array([0, 0]))


def test_infinite_scores_rank():
    assert ranks(np.array([[-np.inf, 0.0], [np.inf, 0.0]]), np.array([0, 0])).better_Q.tolist() == [1, 0]


def test_wrong_shapes_and_no_queries():
    with pytest.raises(ValueError, match="expected"):
        ranks(np.zeros((2, 3)), np.zeros(3, dtype=int))
    with pytest.raises(ValueError, match="no query"):
        ranks(np.zeros((0, 3)), np.zeros(0, dtype=int)).recall(1)


def released_rows(queries: int, candidates: int, truth_column: int):
    ids = [f"q{query}" for query in range(queries) for _ in range(candidates)]
    is_truth = np.tile(np.arange(candidates) == truth_column, queries)
    return ids, is_truth


@pytest.mark.parametrize("truth_column", [0, 1, 63, 100])  # wherever the truth stands in its list, half of it is lost
def test_faulty_grouping_halves_a_perfect_scorer(truth_column):
    ids, is_truth = released_rows(1000, 101, truth_column)
    faulty = released_faulty_recall(ids, is_truth, is_truth.astype(float))
    assert faulty == {"R@1": 0.5, "R@5": 0.5, "R@10": 0.5, "R@100": 0.5}


def test_faulty_grouping_depends_on_the_batch_and_the_correct_one_cannot():
    ids, is_truth = released_rows(100, 101, 0)
    scores = is_truth.astype(float)
    # one batch only: the first row of all, which is the first truth, is the one group too many
    assert released_faulty_recall(ids, is_truth, scores, batch_size=len(ids))["R@1"] == 100 / 101
    # a batch a query: each query's first row, here its truth, stands alone in a group of its own
    assert released_faulty_recall(ids, is_truth, scores, batch_size=101)["R@1"] == 0.5
    # batches of one: every row is a first row, so the grouping is right by accident
    assert released_faulty_recall(ids, is_truth, scores, batch_size=1)["R@1"] == 1.0


def test_faulty_grouping_as_the_released_files_are_read():
    """The documented mechanism, taken literally: print a batch's ids as a list, split on ",", group by the pieces."""
    rng = np.random.default_rng(1)
    ids, is_truth = released_rows(12, 101, 5)
    scores = rng.random(len(ids))
    groups: dict[str, list[int]] = {}
    for start in range(0, len(ids), 64):
        printed = str(ids[start : start + 64])
        for i, name in enumerate(printed.replace("[", "").replace("]", "").split(",")):
            groups.setdefault(name, []).append(start + i)
    hits = sum(any(is_truth[row] for row in sorted(rows, key=lambda r: -scores[r])[:10]) for rows in groups.values())
    assert released_faulty_recall(ids, is_truth, scores)["R@10"] == hits / len(groups)


def test_faulty_grouping_rejects_unequal_lengths():
    with pytest.raises(ValueError, match="length"):
        released_faulty_recall(["a"], np.array([True, False]), np.array([0.1]))
