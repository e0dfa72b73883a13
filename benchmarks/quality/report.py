"""From what each query found to figures with intervals, and to paired tests of systems over the same queries.

A system's figure is the mean over its seeds, query by query; its interval is of the queries (`intervals`), and how far
seeds lie apart is told beside it. A test compares two such means of each query (`comparison.paired`).

Shapes: Q queries, M figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Row
from benchmarks.quality.runs import Job
from benchmarks.quality.systems import GUESSERS
from fashionbert_fast.evaluation.ranking.intervals import mean_intervals
from fashionbert_fast.evaluation.ranking.protocols import DIRECTIONS
from fashionbert_fast.evaluation.ranking.ranks import RECALLS
from fashionbert_fast.evaluation.reports.comparison import check_same_questions, paired
from fashionbert_fast.evaluation.reports.scores import QueryScores, read_scores

NAMES = (*(f"R@{k}" for k in RECALLS), "MRR")  # the columns of `Ranks.values_QM`
TESTED = ("R@1", "R@10", "alignment accuracy")
ACCURACY = TESTED[2]
ANSWERED = (("match", "similarity"), ("sum", "similarity"), ("shortlist", "similarity"))  # of one FashionBERT
SEED = 0  # of resamples and signs


@dataclass
class Answers:
    """What a system, by one score, answered each query, the mean over seeds. values: way -> (Q, 4), in the order of
    `NAMES`, ``both`` the mean of both ways. right_Q: of alignment, NaN where not asked. by_seed: the means of ``both``
    of each seed. validation: how well it ranks validation lists. one: of one seed, for whom was asked what."""

    values: dict[str, np.ndarray]
    right_Q: np.ndarray
    by_seed: list[list[float]]
    validation: float
    one: QueryScores

    @classmethod
    def of(cls, found: Sequence[QueryScores], validation: Sequence[float]) -> Answers:
        """Of the seeds. InputError where they did not answer the same."""
        for other in found[1:]:
            check_same_questions(found[0], other)
        seeds = {way: np.stack([of.ranks[way].values_QM() for of in found]) for way in DIRECTIONS}
        both = np.mean(list(seeds.values()), axis=0)
        values = {way: of.mean(axis=0) for way, of in {**seeds, "both": both}.items()}
        right_Q = np.mean([of.right_Q for of in found], axis=0)
        return cls(values, right_Q, both.mean(axis=1).tolist(), float(np.mean(validation)), found[0])

    def figures(self) -> dict[str, Any]:
        """Each figure with the two ends of its interval, and of both ways the means of each seed."""
        told: dict[str, Any] = {"validation": self.validation, "intervals": {}}
        for way, values_QM in self.values.items():
            told[way] = dict(zip(NAMES, values_QM.mean(axis=0).tolist(), strict=True))
            ends = mean_intervals(values_QM, seed=SEED).tolist()
            told["intervals"][way] = dict(zip(NAMES, ends, strict=True))
        asked_Q = self.right_Q[~np.isnan(self.right_Q)]
        told["alignment_accuracy"] = float(asked_Q.mean())
        told["intervals"]["alignment_accuracy"] = mean_intervals(asked_Q[:, None], seed=SEED)[0].tolist()
        told["by_seed"] = {name: [of[i] for of in self.by_seed] for i, name in enumerate(NAMES)}
        return told

    def of_each(self, figure: str) -> np.ndarray:
        """What a tested figure is the mean of, (Q,): of both ways together."""
        return self.right_Q if figure == ACCURACY else self.values["both"][:, NAMES.index(figure)]


def compared(a: Answers, b: Answers) -> list[dict[str, Any]]:
    """b beside a, query by query: a row for each of `TESTED`. InputError where they did not answer the same."""
    check_same_questions(a.one, b.one)
    rows = []
    for figure in TESTED:
        a_Q, b_Q = a.of_each(figure), b.of_each(figure)
        asked_Q = ~np.isnan(a_Q) & ~np.isnan(b_Q)
        rows.append({"metric": figure} | paired(a_Q[asked_Q], b_Q[asked_Q], SEED))
    return rows


@dataclass
class Entry:
    """A system on a store with what its seeds found. score: that which ranks the validation lists best, on the mean of
    the seeds."""

    job: Job
    answers: dict[str, Answers]
    trained: list[dict[str, Any]]

    @classmethod
    def of(cls, jobs: Sequence[Job], evaluated: Sequence[dict[str, Any]]) -> Entry:
        names = list(evaluated[0]["result"]["validation"])
        answers = {
            name: Answers.of(
                [read_scores(Path(of["folder"]) / f"{name}.parquet") for of in evaluated],
                [of["result"]["validation"][name] for of in evaluated],
            )
            for name in names
        }
        return cls(jobs[0], answers, [of["trained"] for of in evaluated])

    @property
    def score(self) -> str:
        return max(self.answers, key=lambda name: self.answers[name].validation)  # the first of equals

    @property
    def best(self) -> Answers:
        return self.answers[self.score]

    def told(self, same_as: str | None) -> dict[str, Any]:
        """Its part of the JSON."""
        minutes = [of["seconds"] / 60 for of in self.trained]
        return {
            "store": self.job.stock.name, "system": self.job.system.name, "kind": self.job.system.kind,
            "same_as": same_as, "seeds": len(self.trained), "score": self.score,
            "minutes": min(minutes), "minutes_by_seed": minutes,
            "minutes_at_least": any(of["at_least"] for of in self.trained),
            "machines": list({str(of["machine"]): of["machine"] for of in self.trained}.values()),
            "commits": sorted({of["commit"] for of in self.trained}),
            "scores": {name: of.figures() for name, of in self.answers.items()},
        }  # fmt: skip


def best_baseline(entries: Iterable[Entry]) -> Entry | None:
    """The one that ranks the validation lists best; guessers are none."""
    real = [of for of in entries if of.job.system.kind == "baseline" and of.job.system.name not in GUESSERS]
    return max(real, key=lambda of: of.best.validation, default=None)


def summarised(entries: Sequence[Entry], chance: float) -> dict[str, Any]:
    """``systems``, ``tests`` and ``rows`` of the JSON. chance: R@1 of a guesser, below which a peer's counts as it."""
    told, tests, rows, names = [], [], [], {}
    for entry in entries:
        job = entry.job
        first = names.setdefault((job.stock.name, job.key), job.system.name)
        told.append(entry.told(None if first == job.system.name else first))
        peers = [(a, b) for b, a in ANSWERED if b in entry.answers]
        against = [((entry, a), (entry, b)) for a, b in peers]
        best = best_baseline(of for of in entries if of.job.stock == job.stock)
        if best is not None and best is not entry:
            against.append(((best, best.score), (entry, entry.score)))
        for (peer, a), (_, b) in against:
            found = compared(peer.answers[a], entry.answers[b])
            what = {"store": job.stock.name, "system": job.system.name, "score": b, "against": peer.job.system.name,
                    "against_score": a}  # fmt: skip
            tests += [what | row for row in found]
            if job.system.kind == "fashionbert":
                rows += [_row(what, row, chance * int(row["metric"].removeprefix("R@"))) for row in found[:2]]
    return {"systems": told, "tests": tests, "rows": [asdict(row) for row in rows]}


def _row(what: dict[str, Any], test: dict[str, Any], chance: float) -> Row:
    """A test as a row of the contract: times better, a peer below chance counting as chance; the spread is the interval
    of the difference on the same scale."""
    peer = max(test["a"], chance)
    ratio, (low, high) = test["b"] / peer, ((test["a"] + end) / peer for end in test["interval"])
    case = f"{what['store']}: {what['system']} by {what['score']}, {test['metric']}"
    against = f"{what['against']} by {what['against_score']}"
    return Row(case, against, test["b"], test["a"], "share", ratio, 1.0, ratio >= 1, [low, high])
