"""By which score pairs are ranked, and what validation rows say of it.

    match       the alignment head's probability
    similarity  the cosine of the title's vector and the photo's
    sum         of both, each in units of its own standard deviation, weighted as ranks validation lists best
    shortlist   the most similar of a list in the order of their match, the others behind them as they were

Shapes: Q queries, C candidates of a query.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from fashionbert_fast.errors import InputError
from fashionbert_fast.evaluation.ranking.calibration import (
    Calibration,
    choose_weight,
    learn_threshold,
    logit,
    scale_of,
    summed,
)
from fashionbert_fast.evaluation.ranking.candidates import CandidateLists
from fashionbert_fast.evaluation.ranking.protocols import (
    DIRECTIONS,
    Scored,
    alignment_right,
    alignment_scores,
    score_lists,
)
from fashionbert_fast.inference.scorer import Scorer

NAMES = ("match", "similarity", "sum", "shortlist")
NEEDS = {"match": ("match",), "similarity": ("similarity",)}  # kinds of a scorer; the others need both
CALIBRATED = ("similarity", "sum")  # those without a natural threshold
ALL = "all"


@dataclass(frozen=True)
class Ranked:
    """scored: lists by each score asked for. best: the name of the one that is reported first. calibrations: of those
    that have one. validation: what chose the best, `quality` on validation lists; empty where nothing was chosen."""

    scored: dict[str, Scored]
    best: str
    calibrations: dict[str, Calibration]
    validation: dict[str, float]


def asked_scores(score: str | None, shortlist: int | None, has: Sequence[str]) -> list[str]:
    """The scores to rank by, the first one first. score: one of `NAMES`, "all", or None: the first that there is.
    shortlist: how many candidates it takes; the score of that name is added. has: the kinds of the scorer.

    Raises InputError on a score that the model has not, and on a shortlist of no length."""
    if shortlist is not None and shortlist < 1:
        raise InputError(f"--shortlist: {shortlist} is too few; give 1 or more")
    if score == "shortlist" and shortlist is None:
        raise InputError("--score shortlist: of how many candidates? give --shortlist K")
    names = [name for name in NAMES[:3] if set(_kinds([name])) <= set(has)] if score == ALL else [score or has[0]]
    names += ["shortlist"] * (shortlist is not None and "shortlist" not in names)
    for name in names:
        if lacking := set(_kinds([name])) - set(has):
            raise InputError(f"--score {name}: the model has no {min(lacking)}; give --score {has[0]}")
    return names


def _kinds(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(kind for name in names for kind in NEEDS.get(name, ("match", "similarity"))))


def needs_validation(names: Sequence[str], score: str | None) -> bool:
    """Whether anything is to be learnt or chosen on validation rows."""
    return score == ALL or any(name in CALIBRATED for name in names)


def rank(
    scorer: Scorer, lists: CandidateLists, rows_N: np.ndarray, names: Sequence[str], *, score: str | None = None,
    shortlist: int | None = None, validation: Callable[[], tuple[CandidateLists, np.ndarray]] | None = None,
) -> Ranked:  # fmt: skip
    """Score the lists by all ``names``, of `asked_scores`; a collective.

    validation: gives the lists, and their rows, that thresholds and weight are learnt on and the best of "all" is
    chosen by; None: ``lists`` themselves. It is called where that is needed, after the lists have been scored.
    """
    found = _found(scorer, lists, rows_N, names)
    calibrations, qualities = {}, {}
    if needs_validation(names, score):
        known = found if validation is None else _found(scorer, *validation(), names)
        calibrations = calibrate(known, names)
        if score == ALL:
            qualities = {name: quality(of) for name, of in ranked_by(known, names, calibrations, shortlist).items()}
    best = max(names, key=lambda name: qualities.get(name, 0.0))  # the first of equals
    return Ranked(ranked_by(found, names, calibrations, shortlist), best, calibrations, qualities)


def _found(scorer: Scorer, lists: CandidateLists, rows_N: np.ndarray, names: Sequence[str]) -> dict[str, Scored]:
    return {kind: score_lists(lists, rows_N, partial(scorer.score, kind=kind)) for kind in _kinds(names)}


def calibrate(known: Mapping[str, Scored], names: Sequence[str]) -> dict[str, Calibration]:
    """Learn what `CALIBRATED` ``names`` need. known: validation lists by the kinds of the scorer."""
    learnt = {}
    if "similarity" in names:
        learnt["similarity"] = Calibration(_threshold(known["similarity"]))
    if "sum" in names:
        logits, similarity = _mapped(logit, known["match"]), known["similarity"]
        scales = scale_of(_candidates(logits)), scale_of(_candidates(similarity))
        weight = choose_weight(lambda weight: quality(_mapped(_adding(*scales, weight), logits, similarity)))
        threshold = _threshold(_mapped(_adding(*scales, weight), logits, similarity))
        learnt["sum"] = Calibration(threshold, *scales, weight)
    return learnt


def ranked_by(
    found: Mapping[str, Scored], names: Sequence[str], calibrations: Mapping[str, Calibration], shortlist: int | None
) -> dict[str, Scored]:
    """The lists by each of ``names``. found: by the kinds of the scorer."""
    ranked = {}
    for name in names:
        if name == "shortlist":
            assert shortlist is not None
            ranked[name] = shortlisted(found["similarity"], found["match"], shortlist)
        elif name == "sum":
            learnt = calibrations[name]
            assert learnt.match_scale is not None and learnt.similarity_scale is not None and learnt.weight is not None
            adding = _adding(learnt.match_scale, learnt.similarity_scale, learnt.weight)
            ranked[name] = _mapped(adding, _mapped(logit, found["match"]), found["similarity"])
        else:
            ranked[name] = found[name]
        if name in calibrations:
            ranked[name] = replace(ranked[name], right_Q=alignment_right(ranked[name], calibrations[name].threshold))
    return ranked


def shortlisted(similarity: Scored, match: Scored, first: int) -> Scored:
    """Lists by similarity whose ``first`` candidates are put in the order of their match, before the others, which stay
    as they are. Of equally similar candidates the truth is the last to be among the first.

    The scores are the match of the first, and of the others negative whole numbers. A single pair has no list: what is
    right about alignment is what the match says.
    """
    scores = {}
    for direction in DIRECTIONS:
        similarity_QC, match_QC = similarity.scores_QC(direction), match.scores_QC(direction)
        found_QC = np.full(similarity_QC.shape, -np.inf)
        for place, found_C in enumerate(found_QC):
            order = similarity.best_first(direction, place)
            ahead, behind = order[:first], order[first:]
            found_C[ahead] = match_QC[place, ahead]
            found_C[behind] = np.unique(similarity_QC[place, behind], return_inverse=True)[1] - float(len(found_C))
        scores[f"{direction}_QC"] = found_QC
    return replace(match, **scores, right_Q=alignment_right(match))


def quality(scored: Scored) -> float:
    """What scores are chosen by: the mean of R@1 and R@10 of both directions."""
    return float(np.mean([of.recall(k) for of in scored.ranks().values() for k in (1, 10)]))


def _threshold(scored: Scored) -> float:
    own_Q, other_Q = alignment_scores(scored)
    asked_Q = ~np.isnan(other_Q)
    if not asked_Q.any():
        raise InputError("validation: every query has only its twins beside it, so no threshold can be learnt; give "
                         "more --candidates, or --score match")  # fmt: skip
    return learn_threshold(own_Q[asked_Q], other_Q[asked_Q])


def _adding(match_scale: float, similarity_scale: float, weight: float) -> Callable[..., np.ndarray]:
    return lambda logits, similarity: summed(logits, similarity, match_scale, similarity_scale, weight)


def _candidates(scored: Scored) -> np.ndarray:
    """The scores of all candidates of both directions, of what is not left out."""
    left_out_QC, both = scored.lists.left_out_QC, [scored.scores_QC(name) for name in DIRECTIONS]
    return np.concatenate([of.ravel() if left_out_QC is None else of[~left_out_QC] for of in both])


def _mapped(function: Callable[..., np.ndarray], *of: Scored) -> Scored:
    """The lists of ``of`` with a function of their scores, element by element."""
    left_out_QC = of[0].lists.left_out_QC

    def scores_QC(direction: str) -> np.ndarray:
        given = [one.scores_QC(direction) for one in of]
        if left_out_QC is None:
            return function(*given)
        return np.where(left_out_QC, -np.inf, function(*(np.where(left_out_QC, 0.0, one) for one in given)))

    by_title_QC = scores_QC("text_to_image")
    if np.may_share_memory(of[0].text_to_image_QC, of[0].image_to_text_QC):  # one matrix, as of "full"
        return replace(of[0], text_to_image_QC=by_title_QC, image_to_text_QC=by_title_QC.T)
    return replace(of[0], text_to_image_QC=by_title_QC, image_to_text_QC=scores_QC("image_to_text"))
