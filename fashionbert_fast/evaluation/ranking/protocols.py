"""The two protocols, from a scorer of pairs to the dict that `fashionbert evaluate --json` writes.

Shapes: N products evaluated, Q queries, C candidates of a query, K distinct pairs to score.

    lists = candidate_lists(...)            which products each query is ranked against
    scored = score_lists(lists, ...)        every distinct pair scored once, both directions read from it
    evaluate(...)                           both, summed up as recall and accuracy
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fashionbert_fast.data.sampling import numbered
from fashionbert_fast.errors import InputError
from fashionbert_fast.evaluation.ranking.candidates import (
    CandidateLists,
    CandidateSampler,
    full_lists,
    sampled_lists,
)
from fashionbert_fast.evaluation.ranking.intervals import figures, interval, mean_intervals, median
from fashionbert_fast.evaluation.ranking.ranks import RECALLS, RELEASED_BATCH_SIZE, Ranks, ranks, released_faulty_recall
from fashionbert_fast.evaluation.recognition.linear_probe import recognition

PROTOCOLS = ("fashionbert", "full")
GROUPINGS = ("correct", "released-faulty")
DIRECTIONS = ("image_to_text", "text_to_image")
LISTS = ("own_subcategory", "topped_up_from_category", "topped_up_from_anywhere")  # by tier: see CandidateLists
DEFAULT_QUERIES = 1000
DEFAULT_CANDIDATES = 101
PAIRS_PER_CALL = 1 << 22  # bounds the index arrays of one call to the scorer: 64 MiB

Score = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (text rows [K], image rows [K]) -> probability of a match [K]
Vectors = Callable[[np.ndarray], np.ndarray]  # rows [n] -> [CLS] vectors [n, H]


class Products(Protocol):
    """What the protocols read of a feature store: one entry a row, rows numbered from 0."""

    ids: list[str]
    titles: list[str]
    categories: list[str]
    subcategories: list[str]
    splits: list[str]
    groups: list[str]  # views of one product share one; "": none
    image_hashes: list[str]  # "": not known

    @property
    def twin_N(self) -> np.ndarray:
        """Equal for rows that share a group, a title or a photo."""
        ...


@dataclass(frozen=True)
class Scored:
    """Scores of both directions beside the lists they belong to.

    rows_N: the store rows that the positions in ``lists`` stand for. text_to_image_QC: title of the query with the
    images of its candidates. image_to_text_QC: image of the query with the titles of its candidates. What the
    lists leave out scores -inf: behind every candidate, tied with none. right_Q: of scores that are no probabilities,
    what is right about alignment; None: what their being above 0.5 says.
    """

    rows_N: np.ndarray
    lists: CandidateLists
    text_to_image_QC: np.ndarray
    image_to_text_QC: np.ndarray
    right_Q: np.ndarray | None = None

    def scores_QC(self, direction: str) -> np.ndarray:
        """The scores of one of `DIRECTIONS`."""
        return getattr(self, f"{direction}_QC")

    def ranks(self) -> dict[str, Ranks]:
        """Of each direction."""
        return {name: ranks(self.scores_QC(name), self.lists.truth_Q) for name in DIRECTIONS}

    def best_first(self, direction: str, place: int) -> np.ndarray:
        """Columns of the candidates of the query at ``place``, best first; the truth behind those it ties with."""
        scores_C = self.scores_QC(direction)[place]
        order_C = np.lexsort((np.arange(len(scores_C)) == self.lists.truth_Q[place], -scores_C))
        return order_C if self.lists.left_out_QC is None else order_C[~self.lists.left_out_QC[place][order_C]]


def candidate_lists(
    store: Products, rows_N: np.ndarray, *, protocol: str, queries: int | None, candidates: int, seed: int
) -> CandidateLists:
    """Draw the queries and candidates of ``protocol`` among ``rows_N`` of the store. InputError on nonsense."""
    if protocol not in PROTOCOLS:
        raise InputError(f"protocol: {protocol!r} is unknown; choose one of {', '.join(PROTOCOLS)}")
    if queries is not None and queries < 1:
        raise InputError(f"queries: {queries} is not a number of queries; give 1 or more")
    if candidates < 2:
        raise InputError(f"candidates: {candidates} leaves nothing to confuse the truth with; give 2 or more")
    if len(rows_N) < 2:
        raise InputError(f"rows: {len(rows_N)} product(s) to evaluate; ranking needs 2 or more, choose another split")
    sampler = sampler_of(store, rows_N, seed)
    if len(set(sampler.twin_N)) < 2:
        raise InputError(f"rows: the {len(rows_N)} products are twins of one another; ranking needs 2 that differ")
    if protocol == "full":
        return full_lists(sampler, None if queries is None or queries >= len(rows_N) else queries)
    return sampled_lists(sampler, DEFAULT_QUERIES if queries is None else queries, candidates)


def sampler_of(store: Products, rows_N: np.ndarray, seed: int) -> CandidateSampler:
    """The sampler over ``rows_N`` of the store, whose positions it counts."""
    ids, categories, subcategories, groups = (
        [column[row] for row in rows_N.tolist()]
        for column in (store.ids, store.categories, store.subcategories, store.groups)
    )
    return CandidateSampler(ids, categories, subcategories, seed, groups=groups, twins=store.twin_N[rows_N])


def score_lists(
    lists: CandidateLists, rows_N: np.ndarray, score: Score, *, pairs_per_call: int = PAIRS_PER_CALL
) -> Scored:
    """Score every distinct (title, image) pair of the lists once and lay the scores out for both directions."""
    every_query = len(lists.queries_Q) == lists.candidates_QC.shape[1] == len(rows_N)
    if every_query and (lists.candidates_QC == lists.queries_Q).all():
        text_QC, image_QC = np.broadcast_arrays(rows_N[:, None], rows_N[None, :])
        matrix_QC = _score_pairs(text_QC, image_QC, score, pairs_per_call)
        _leave_out(lists, matrix_QC)  # as symmetric as being a view of another is
        return Scored(rows_N, lists, matrix_QC, matrix_QC.T)  # one matrix: its rows are titles, its columns images
    query_Q1 = lists.queries_Q[:, None]
    pairs = np.stack([query_Q1 * len(rows_N) + lists.candidates_QC, lists.candidates_QC * len(rows_N) + query_Q1])
    distinct_K, place = np.unique(pairs, return_inverse=True)
    text_K, image_K = np.divmod(distinct_K, len(rows_N))
    scores_K = _score_pairs(rows_N[text_K], rows_N[image_K], score, pairs_per_call)
    text_to_image_QC, image_to_text_QC = scores_K[place.reshape(pairs.shape)]
    _leave_out(lists, text_to_image_QC, image_to_text_QC)
    return Scored(rows_N, lists, text_to_image_QC, image_to_text_QC)


def _leave_out(lists: CandidateLists, *scores_QC: np.ndarray) -> None:
    if lists.left_out_QC is not None:
        for scores in scores_QC:
            scores[lists.left_out_QC] = -np.inf


def _score_pairs(text: np.ndarray, image: np.ndarray, score: Score, pairs_per_call: int) -> np.ndarray:
    """Scores of equal-shaped row arrays, asked for in bounded calls. InputError when the model answers NaN."""
    # cut by whole rows of a matrix, so that the index arrays of all its N x N pairs never exist at once
    step = max(1, pairs_per_call // (text.shape[1] if text.ndim == 2 else 1))
    blocks = [(text[i : i + step].ravel(), image[i : i + step].ravel()) for i in range(0, len(text), step)]
    scores = np.concatenate([np.asarray(score(*block)) for block in blocks])
    if scores.shape != (text.size,):
        raise ValueError(f"score: {scores.shape} scores came back for {text.size} pairs")
    wrong = int(np.isnan(scores).sum())
    if wrong:
        raise InputError(
            f"checkpoint: the model scores {wrong} of {scores.size} pairs as NaN (its training diverged, or "
            "its weights are damaged); evaluate an earlier checkpoint"
        )
    return scores.reshape(text.shape)


def alignment_scores(scored: Scored) -> tuple[np.ndarray, np.ndarray]:
    """Two pairs of each query, [Q] each: its own title and image, and its title with the image of one other product of
    the same sub-category (the next tier where it is alone in it) and no twin, as in training. NaN in place of the
    second where there are only twins: such a query is not asked."""
    lists, scores_QC = scored.lists, scored.text_to_image_QC
    query_Q = np.arange(len(lists.queries_Q))
    other_Q = np.where(lists.negatives_Q >= 0, scores_QC[query_Q, lists.negatives_Q], np.nan)
    return scores_QC[query_Q, lists.truth_Q], other_Q


def alignment_right(scored: Scored, threshold: float = 0.5) -> np.ndarray:
    """Share of right answers to "does this image belong to this title?" of each query: 0, 0.5, 1; NaN where not asked.

    Both `alignment_scores` of a query are asked. "Match" means a score above the threshold, so a scorer that always
    says the same gets exactly 0.5.
    """
    if scored.right_Q is not None:
        return scored.right_Q
    own_Q, other_Q = alignment_scores(scored)
    positives_Q, negatives_Q = own_Q > threshold, other_Q > threshold
    return np.where(np.isnan(other_Q), np.nan, (positives_Q + (~negatives_Q).astype(float)) / 2)


def evaluate(
    store: Products,
    rows: np.ndarray,
    score: Score,
    *,
    protocol: str = "fashionbert",
    queries: int | None = None,
    candidates: int = DEFAULT_CANDIDATES,
    seed: int = 0,
    grouping: str = "correct",
    vectors: Vectors | None = None,
    released_batch_size: int = RELEASED_BATCH_SIZE,
    pairs_per_call: int = PAIRS_PER_CALL,
) -> dict[str, Any]:
    """Evaluate a scorer on ``rows`` of a store; the result is what `fashionbert evaluate --json` writes.

    score: probability of "match" for pairs of (text row, image row). vectors: [CLS] vectors of rows; given, protocol
    "full" adds category recognition, its probe fitted on the store's training split.
    protocol: "fashionbert" ranks the truth among ``candidates`` of its sub-category, "full" among all of ``rows``.
    queries: None is 1,000 under "fashionbert", every row under "full"; never more than there are rows.
    grouping: "released-faulty" reproduces the released evaluator's fault (see ``released_faulty_recall``).
    Raises InputError on unknown names, too few rows or NaN scores.
    """
    check_grouping(grouping, protocol, released_batch_size)
    rows_N = np.asarray(rows, dtype=np.int64)
    lists = candidate_lists(store, rows_N, protocol=protocol, queries=queries, candidates=candidates, seed=seed)
    scored = score_lists(lists, rows_N, score, pairs_per_call=pairs_per_call)
    result = summarise(store, scored, protocol=protocol, seed=seed)
    if grouping == "released-faulty":
        result = released_faulty(store, scored, result, released_batch_size)
    if protocol == "full" and vectors is not None:
        result["recognition"] = recognition(store, rows_N, vectors)
    return result


def check_grouping(grouping: str, protocol: str, released_batch_size: int) -> None:
    """InputError on nonsense."""
    if grouping not in GROUPINGS:
        raise InputError(f"grouping: {grouping!r} is unknown; choose one of {', '.join(GROUPINGS)}")
    if grouping != "correct" and protocol != "fashionbert":
        raise InputError(f"grouping: {grouping!r} exists only under protocol 'fashionbert'; leave it out")
    if released_batch_size < 1:
        raise InputError(f"released_batch_size: {released_batch_size} is no batch size; give 1 or more")


def summarise(store: Products, scored: Scored, *, protocol: str, seed: int) -> dict[str, Any]:
    """The contract's keys first, then what a reader needs to judge them: 95% intervals over the queries, median rank
    and mean reciprocal rank, what ties cost, how the lists were filled."""
    lists = scored.lists
    # by id, so that neither sums nor resamples know the order of the rows
    order_Q = np.argsort([store.ids[row] for row in scored.rows_N[lists.queries_Q]], kind="stable")
    found = {name: of.of(order_Q) for name, of in scored.ranks().items()}
    right_Q = alignment_right(scored)[order_Q]
    right_Q = right_Q[~np.isnan(right_Q)]
    if len(right_Q) == 0:
        raise InputError("candidates: every query has only its twins beside it, who cannot be told apart; give more")
    tier_Q = lists.tier_Q[order_Q]
    ranked, intervals = _ranked(found, seed)
    result = {
        "protocol": protocol,
        "queries": len(lists.queries_Q),
        "candidates": int(lists.candidates_QC.shape[1]),
        "topped_up": int((tier_Q > 0).sum()),
        "alignment_accuracy": float(right_Q.mean()),
        **ranked,
        "intervals": {"alignment_accuracy": mean_intervals(right_Q[:, None], seed=seed)[0].tolist(), **intervals},
        "random_ties": {name: {f"R@{k}": of.random_recall(k) for k in RECALLS} for name, of in found.items()},
        "queries_with_ties": {name: int((of.tied_Q > 0).sum()) for name, of in found.items()},
        "grouping": "correct",
        "seed": seed,
        "topped_up_from_category": int((tier_Q == 1).sum()),
        "topped_up_from_anywhere": int((tier_Q == 2).sum()),
        "alignment_queries": len(right_Q),
        "alignment_negatives_outside_subcategory": lists.negatives_outside_subcategory,
        "queries_with_a_twin_title": _with_a_twin(scored, [store.titles[row] for row in scored.rows_N]),
        "queries_with_a_twin_photo": _with_a_twin(scored, [store.image_hashes[row] or row for row in scored.rows_N]),
        "queries_with_other_views": lists.with_other_views,
    }
    if protocol == "fashionbert":  # no list of "full" is topped up
        result["by_list"] = _by_list(tier_Q, found, seed)
    return result


def _ranked(found: dict[str, Ranks], seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The figures that are read from ranks, by direction, and the 95% interval of each."""
    values: dict[str, Any] = {**{name: {} for name in found}, "median_rank": {}, "mrr": {}}
    ends = {name: {} for name in values}
    for name, of in found.items():
        values_QM, middle = of.values_QM(), median(of.rank_Q)
        Q = len(values_QM)
        value_M = np.append(values_QM.mean(axis=0), figures(middle, Q))
        end_M = np.append(mean_intervals(values_QM, seed=seed), interval(middle, Q, seed=seed), axis=0)
        places = [*((name, f"R@{k}") for k in RECALLS), ("mrr", name), ("median_rank", name)]
        for (key, part), value, end in zip(places, value_M.tolist(), end_M.tolist(), strict=True):
            values[key][part], ends[key][part] = value, end
    return values, ends


def _by_list(tier_Q: np.ndarray, found: dict[str, Ranks], seed: int) -> dict[str, Any]:
    """Recall apart for lists of the query's sub-category alone and for those topped up: others are easier to tell."""
    by_list = {}
    for tier, name in enumerate(LISTS):
        if (chosen_Q := tier_Q == tier).any():
            ranked, intervals = _ranked({direction: of.of(chosen_Q) for direction, of in found.items()}, seed)
            by_list[name] = {
                "queries": int(chosen_Q.sum()),
                **{direction: ranked[direction] for direction in found},
                "intervals": {direction: intervals[direction] for direction in found},
            }
    return by_list


def _with_a_twin(scored: Scored, labels_N: Sequence[Hashable]) -> int:
    """Queries with a candidate whose title (or photo) is the very one of the truth: nobody can tell those two apart."""
    lists, label_N = scored.lists, numbered(labels_N)
    found = 0
    for place, query in enumerate(lists.queries_Q):  # a query at a time: all candidates' labels would be N x N
        twin_C = label_N[lists.candidates_QC[place]] == label_N[query]
        found += int((twin_C if lists.left_out_QC is None else twin_C & ~lists.left_out_QC[place]).sum() > 1)
    return found


def released_faulty(store: Products, scored: Scored, result: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """``result`` with the recalls that the released evaluator would have printed for these scores."""
    lists = scored.lists
    width = lists.candidates_QC.shape[1]
    ids_R = [store.ids[row] for row in scored.rows_N[lists.queries_Q].tolist() for _ in range(width)]
    is_truth_R = (np.arange(width) == lists.truth_Q[:, None]).ravel()
    faulty: dict[str, Any] = {"grouping": "released-faulty", "released_batch_size": batch_size}
    for name in DIRECTIONS:
        faulty[name] = released_faulty_recall(ids_R, is_truth_R, scored.scores_QC(name).ravel(), batch_size=batch_size)
    of_the_correct = ("intervals", "random_ties", "queries_with_ties")
    return {name: value for name, value in result.items() if name not in of_the_correct} | faulty
