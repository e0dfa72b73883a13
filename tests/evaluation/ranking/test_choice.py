"""Ranking by one score, by two added up and by one after the other, with scorers that are tables of numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fashionbert_fast.errors import InputError
from fashionbert_fast.evaluation.ranking import calibration
from fashionbert_fast.evaluation.ranking.choice import NAMES, asked_scores, quality, rank, shortlisted
from fashionbert_fast.evaluation.ranking.protocols import (
    DIRECTIONS,
    alignment_right,
    candidate_lists,
    score_lists,
    summarise,
)

BOTH = ("match", "similarity")


class Table:
    """Scores read from tables, one a kind, and every pair of rows that was asked for."""

    def __init__(self, **table_NN: np.ndarray) -> None:
        self.tables, self.scores, self.asked = table_NN, tuple(table_NN), []

    def score(self, text_rows, image_rows, kind="match"):
        self.asked.append((kind, set(text_rows.tolist()) | set(image_rows.tolist())))
        return self.tables[kind][text_rows, image_rows]


def noisy(count: int, strength: float, seed: int) -> np.ndarray:
    """Knows the truth, less so the weaker it is."""
    return np.random.default_rng(seed).standard_normal((count, count)) + strength * np.eye(count)


def sigmoid(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit))


@pytest.fixture
def store(make_products):
    """60 products of the validation split, then 90 of the test split."""
    store = make_products({("a", "b"): 90, ("a", "c"): 60})
    store.splits[:] = ["validation"] * 60 + ["test"] * 90
    return store


def drawn(store, split, protocol="fashionbert"):
    rows = store.rows(split)
    return candidate_lists(store, rows, protocol=protocol, queries=None, candidates=21, seed=0), rows


def knowing(count=150, match=1.5, similarity=1.5, scale=0.1):
    return Table(match=sigmoid(noisy(count, match, 1)), similarity=scale * noisy(count, similarity, 2))


@pytest.mark.parametrize("protocol", ["fashionbert", "full"])
@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize(("weight", "alone"), [(0.0, "match"), (1.0, "similarity")])
def test_a_sum_of_one_is_that_one(store, monkeypatch, weight, alone, views, protocol):
    if views:
        store.groups[3:6] = ["one"] * 3
    monkeypatch.setattr(calibration, "WEIGHTS", (weight,))
    lists, rows = drawn(store, "validation", protocol)
    found = rank(knowing(), lists, rows, ["sum", alone]).scored
    assert (lists.left_out_QC is not None) == (views and protocol == "full") or protocol == "fashionbert"
    for direction in DIRECTIONS:
        assert not np.isnan(found["sum"].scores_QC(direction)).any()
        for place in range(len(lists.queries_Q)):
            orders = [found[name].best_first(direction, place).tolist() for name in ("sum", alone)]
            assert orders[0] == orders[1]
        for ours, its in zip(vars(found["sum"].ranks()[direction]).values(),
                             vars(found[alone].ranks()[direction]).values(), strict=True):  # fmt: skip
            np.testing.assert_array_equal(ours, its)


def test_the_sum_is_the_formula_and_its_weight_ranks_validation_best(store):
    lists, rows = drawn(store, "validation")
    scorer = knowing()
    ranked = rank(scorer, lists, rows, ["sum"])
    learnt, found = ranked.calibrations["sum"], ranked.scored["sum"]
    logits, cosines = [], []
    for place, query in enumerate(lists.queries_Q):  # 20 candidates and the truth in each direction
        for candidate in lists.candidates_QC[place]:
            for text, image in ((rows[query], rows[candidate]), (rows[candidate], rows[query])):
                p = scorer.tables["match"][text, image]
                logits.append(np.log(p / (1 - p)))
                cosines.append(scorer.tables["similarity"][text, image])
    assert (learnt.match_scale, learnt.similarity_scale) == pytest.approx((np.std(logits), np.std(cosines)))
    assert 0 < learnt.weight < 1
    expected = (1 - learnt.weight) * np.array(logits) / np.std(logits) + learnt.weight * np.array(cosines) / np.std(
        cosines
    )
    np.testing.assert_allclose(found.text_to_image_QC.ravel(), expected[0::2], rtol=1e-9)
    np.testing.assert_allclose(found.image_to_text_QC.ravel(), expected[1::2], rtol=1e-9)
    parts = [quality(score_lists(lists, rows, lambda t, i, kind=kind: scorer.score(t, i, kind))) for kind in BOTH]
    assert quality(found) > max(parts)  # two that err independently


@pytest.mark.parametrize("protocol", ["fashionbert", "full"])
def test_a_shortlist_of_one_is_similarity_and_of_all_is_match(store, protocol):
    lists, rows = drawn(store, "test", protocol)
    scorer = knowing(similarity=0.7)
    found = {n: rank(scorer, lists, rows, ["shortlist", *BOTH], shortlist=n).scored for n in (1, 5, 10**6)}
    for direction in DIRECTIONS:
        match, similarity = (found[1][kind].ranks()[direction] for kind in BOTH)
        one, few, all_ = (found[n]["shortlist"].ranks()[direction] for n in found)
        np.testing.assert_array_equal(one.rank_Q, similarity.rank_Q)
        np.testing.assert_array_equal(all_.rank_Q, match.rank_Q)
        assert (few.found_Q(5) == similarity.found_Q(5)).all()
        assert (few.rank_Q[~few.found_Q(5)] == similarity.rank_Q[~few.found_Q(5)]).all()
        assert few.recall(1) not in (similarity.recall(1), match.recall(1))
    np.testing.assert_array_equal(alignment_right(found[5]["shortlist"]), alignment_right(found[5]["match"]))


def test_a_shortlist_worked_by_hand(make_products):
    """Query 0, its own photo 0. The two most similar are 3 and 2, before 0 and 1, which tie; match prefers 2, then 0.
    Among the three most similar, of two that tie the truth is not."""
    store = make_products({("a", "b"): 4})
    lists, rows = (
        candidate_lists(store, np.arange(4), protocol="full", queries=None, candidates=2, seed=0),
        np.arange(4),
    )
    similarity_NN, match_NN = np.eye(4), np.eye(4)
    similarity_NN[0], match_NN[0] = [0.1, 0.1, 0.5, 0.9], [0.6, 0.1, 0.7, 0.2]
    similarity, match = (score_lists(lists, rows, lambda t, i, of=of: of[t, i]) for of in (similarity_NN, match_NN))
    assert shortlisted(similarity, match, 2).text_to_image_QC[0].tolist() == [-4, -4, 0.7, 0.2]
    assert shortlisted(similarity, match, 2).ranks()["text_to_image"].rank_Q[0] == 4
    assert shortlisted(similarity, match, 3).text_to_image_QC[0].tolist() == [-4, 0.1, 0.7, 0.2]
    assert shortlisted(similarity, match, 4).ranks()["text_to_image"].rank_Q[0] == 2


def test_thresholds_are_learnt_on_validation_rows_and_no_others(store):
    lists, rows = drawn(store, "test")
    validation = drawn(store, "validation")
    scorer = knowing()
    ranked = rank(scorer, lists, rows, ["similarity", "sum"], validation=lambda: validation)
    assert [kind for kind, _ in scorer.asked] == ["similarity", "match"] * 2
    for _, asked in scorer.asked[:2]:
        assert asked <= set(range(60, 150))
    for _, asked in scorer.asked[2:]:
        assert asked <= set(range(60))
    blind = knowing()
    for table_NN in blind.tables.values():
        table_NN[60:] = table_NN[:, 60:] = 0.25  # of what is reported, nothing is told apart
    again = rank(blind, lists, rows, ["similarity", "sum"], validation=lambda: validation)
    assert again.calibrations == ranked.calibrations
    assert alignment_right(again.scored["similarity"]).mean() == 0.5


def test_accuracy_is_by_the_learnt_threshold(store):
    """Similarities of 5 and of 105 and more: none of them lies below 0.5, and the sigmoids of the latter are all 1."""
    lists, rows = drawn(store, "test")
    scorer = knowing(similarity=6)
    scorer.tables["similarity"] += 5
    shifted = knowing(similarity=6)
    shifted.tables["similarity"] += 105
    found = {}
    for name, one in (("as it is", scorer), ("shifted", shifted)):
        ranked = rank(one, lists, rows, ["similarity"], validation=lambda: drawn(store, "validation"))
        found[name] = summarise(store, ranked.scored["similarity"], protocol="fashionbert", seed=0)
        assert 5 < ranked.calibrations["similarity"].threshold - 100 * (name == "shifted") < 5.6
    accuracies = [of["alignment_accuracy"] for of in found.values()]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.01) and accuracies[0] > 0.98
    assert alignment_right(replace(ranked.scored["similarity"], right_Q=None)).mean() == 0.5


def test_the_best_of_all_is_chosen_on_validation_though_it_is_worse_on_what_is_reported(store):
    lists, rows = drawn(store, "test")
    scorer = knowing(match=3, similarity=1)
    known = np.ix_(range(60), range(60))
    scorer.tables["similarity"][known] = 0.1 * noisy(60, 9, 3)
    names = asked_scores("all", 3, BOTH)
    validation = lambda: drawn(store, "validation")  # noqa: E731
    ranked = rank(scorer, lists, rows, names, score="all", shortlist=3, validation=validation)
    assert list(ranked.scored) == list(ranked.validation) == list(NAMES)
    assert ranked.validation["similarity"] == max(ranked.validation.values()) > ranked.validation["match"]
    assert ranked.best == "similarity"
    assert quality(ranked.scored["similarity"]) < quality(ranked.scored["match"])
    own = rank(scorer, *validation(), names, score="all", shortlist=3)
    assert own.validation == ranked.validation and own.calibrations == ranked.calibrations


def test_match_alone_learns_nothing(store):
    ranked = rank(knowing(), *drawn(store, "test"), ["match"], validation=lambda: pytest.fail("nothing to learn"))
    assert (ranked.best, ranked.calibrations, ranked.validation) == ("match", {}, {})


@pytest.mark.parametrize(
    ("score", "shortlist", "has", "names"),
    [
        (None, None, BOTH, ["match"]),
        (None, None, ("similarity",), ["similarity"]),
        ("sum", None, BOTH, ["sum"]),
        ("match", 5, BOTH, ["match", "shortlist"]),
        ("shortlist", 5, BOTH, ["shortlist"]),
        ("all", None, BOTH, ["match", "similarity", "sum"]),
        ("all", 5, BOTH, ["match", "similarity", "sum", "shortlist"]),
        ("all", None, ("similarity",), ["similarity"]),
    ],
)
def test_what_is_asked(score, shortlist, has, names):
    assert asked_scores(score, shortlist, has) == names


@pytest.mark.parametrize("score", [None, *NAMES, "all"])
@pytest.mark.parametrize("has", [BOTH[:1], BOTH[1:]])
def test_what_the_model_has_not_is_named(score, has):
    lacking = {"match", "similarity"} - set(has)
    if score in (None, "all", *has):
        assert set(asked_scores(score, None, has)) == set(has)
    else:
        with pytest.raises(
            InputError, match=rf"--score {score}: the model has no {min(lacking)}; give --score {has[0]}"
        ):
            asked_scores(score, 5 if score == "shortlist" else None, has)


def test_a_shortlist_has_a_length():
    for (score, shortlist), words in {
        ("all", 0): "--shortlist: 0 is too few",
        ("shortlist", None): "give --shortlist K",
    }.items():
        with pytest.raises(InputError, match=words):
            asked_scores(score, shortlist, BOTH)


def test_twins_alone_teach_no_threshold(store):
    lists, rows = drawn(store, "validation")
    lists = replace(lists, negatives_Q=np.full(60, -1))
    with pytest.raises(InputError, match="validation: every query has only its twins"):
        rank(knowing(), lists, rows, ["similarity"])
