"""Training and evaluating one system on one store by one seed, once: what is done is found again by its key.

    WORK/STORE/SYSTEM-SEED-KEY/
        run/              what `fashionbert pretrain` or `baseline` writes, without the optimizer's state
        trained.json      where the model lies in it, seconds, machine, commit
        evaluation-KEY/   result.json (as `fashionbert evaluate --json`) and SCORE.parquet (as --scores), a file a score

A key is a hash of all settings and of what the store holds, an evaluation's of the candidate lists as well.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import commit
from benchmarks.quality.systems import Baseline, Sizes, System
from fashionbert_fast.commands.evaluate import load_scorer
from fashionbert_fast.cpu import cpu_info
from fashionbert_fast.errors import InputError
from fashionbert_fast.evaluation.ranking.protocols import candidate_lists
from fashionbert_fast.evaluation.reports.candidate_files import Drawn, describe, write_lists
from fashionbert_fast.evaluation.reports.scores import write_scores
from fashionbert_fast.evaluation.run import run_evaluation
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.files import SEAL, read_json, write_json
from fashionbert_fast.inference.shards import forget
from fashionbert_fast.profiling.device import device_name
from fashionbert_fast.run_directory import BEST, list_checkpoints

SPLITS = ("train", "validation", "test")
SHORTLIST = 10  # candidates that the alignment head puts in order behind a cosine
LISTS_SEED = 0
REMEDY = "delete the folder it lies in"


@dataclass(frozen=True)
class Stock:
    """A store by the name it has in the tables. content: the hash of what it holds."""

    name: str
    path: Path
    content: str


@dataclass(frozen=True)
class Job:
    """A system on a store by a seed."""

    stock: Stock
    system: System
    seed: int
    sizes: Sizes
    work: Path

    @functools.cached_property
    def key(self) -> str:
        return digest({"store": self.stock.content, **self.system.settings(self.seed, self.sizes)})

    @property
    def folder(self) -> Path:
        """Not named for the system but for what kind it is: equal settings under two names are trained once."""
        name = self.system.name if isinstance(self.system, Baseline) else self.system.kind
        return self.work / self.stock.name / f"{name}-{self.seed}-{self.key[:12]}"


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def machine() -> dict[str, Any]:
    """Where it is trained."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    processor = cpu_info().get("model name", "unknown")
    return {"device": device_name(device), "processor": processor, "cores": len(os.sched_getaffinity(0))}


# Stores and lists ----------------------------------------------------------------------------------------------------
def open_stocks(named: dict[str, Path]) -> list[Stock]:
    """InputError unless each has hashes and the three splits, and all have the same products in them: what is trained
    on in one store must not be asked in another."""
    stocks, first = [], {}
    for name, path in named.items():
        store = FeatureStore.open(path)
        if not store.manifest.content_sha256:
            raise InputError(f"{path}: has no hash of its content, by which runs are found again; prepare it again")
        for split in SPLITS:
            if len(store.rows(split)) < 2:
                raise InputError(f"{path}: split {split!r} has {len(store.rows(split))} products; prepare it with "
                                 "--holdout 0.1 --test 0.2")  # fmt: skip
        splits = dict(zip(store.ids, store.splits, strict=True))
        first = first or splits
        if splits != first:
            other = min(id_ for id_ in splits.keys() | first.keys() if splits.get(id_) != first.get(id_))
            raise InputError(f"{path}: product {other} is of split {splits.get(other, 'none')}, in "
                             f"{stocks[0].path} of {first.get(other, 'none')}; prepare all stores from one catalogue "
                             "with one --seed, --holdout and --test")  # fmt: skip
        stocks.append(Stock(name, path, store.manifest.content_sha256))
    return stocks


def write_test_lists(path: Path, store: Path, sizes: Sizes) -> str:
    """Draw the lists that every system is asked, of the split test; returns their hash."""
    opened = FeatureStore.open(store)
    rows = opened.rows("test")
    drawn = candidate_lists(
        opened, rows, protocol="fashionbert", queries=sizes.queries, candidates=min(sizes.candidates, len(rows)),
        seed=LISTS_SEED,
    )  # fmt: skip
    described = describe(opened, Drawn(drawn, rows, "fashionbert", "test", LISTS_SEED))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_lists(path, described)
    return described[SEAL]


# Training ------------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def timed(path: Path) -> Iterator[None]:
    """Add the seconds of the block to those in the file, which also says how many blocks began and how many ended: a
    killed process leaves its own out."""
    spent = read_json(path, REMEDY) if path.exists() else {"seconds": 0.0, "begun": 0, "ended": 0}
    write_json(path, spent | {"begun": spent["begun"] + 1})
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds = spent["seconds"] + time.perf_counter() - start
        write_json(path, {"seconds": seconds, "begun": spent["begun"] + 1, "ended": spent["ended"] + 1})


def train(job: Job) -> dict[str, Any]:
    """Train, go on with what was interrupted, or find what is done: trained.json, with the parts' seconds in a sum's.

    KeyboardInterrupt: it was interrupted, and goes on when asked again.
    """
    done = job.folder / "trained.json"
    parts = [Job(job.stock, part, job.seed, job.sizes, job.work) for part in job.system.parts]
    before = [train(part) for part in parts]
    if done.exists():
        return read_json(done, REMEDY)
    job.folder.mkdir(parents=True, exist_ok=True)
    with timed(job.folder / "time.json"):
        if isinstance(job.system, Baseline):
            model = _fit(job, [part.folder / of["model"] for part, of in zip(parts, before, strict=True)])
        else:
            model = _pretrain(job)
    spent = read_json(job.folder / "time.json", REMEDY)
    found = {
        "model": str(model.relative_to(job.folder)),
        "seconds": spent["seconds"] + sum(of["seconds"] for of in before),
        # A killed process took longer than is known.
        "at_least": spent["begun"] != spent["ended"] or any(of["at_least"] for of in before),
        "machine": machine(), "commit": commit(), "settings": job.system.settings(job.seed, job.sizes),
    }  # fmt: skip
    write_json(done, found)
    for state in job.folder.glob("run/checkpoints/*/state"):  # three times the model, and nothing goes on from here
        shutil.rmtree(state)
    return found


def _fit(job: Job, parts: list[Path]) -> Path:
    from fashionbert_fast.baselines.fitting import Budget
    from fashionbert_fast.baselines.system import save
    from fashionbert_fast.baselines.systems import fit

    store, run = FeatureStore.open(job.stock.path), job.folder / "run"
    budget = Budget(seconds=job.sizes.seconds, epochs=job.sizes.epochs)
    shutil.rmtree(run, ignore_errors=True)
    how = {"seed": job.seed, "budget": budget, "core": job.sizes.core, "parts": parts or None}
    save(fit(job.system.name, store, **how), run)
    return run


def _pretrain(job: Job) -> Path:
    from fashionbert_fast.engine.checkpointing.resume import begun
    from fashionbert_fast.engine.train import pretrain

    assert not isinstance(job.system, Baseline)
    run = job.folder / "run"
    pretrain(job.system.configuration(job.seed, job.sizes, job.stock.path, run), resume=begun(run))
    best = run / "checkpoints" / BEST
    return (best.resolve() if best.exists() else list_checkpoints(run)[-1].resolve()) / "model"


# Evaluating ----------------------------------------------------------------------------------------------------------
def answers_of(job: Job, lists_hash: str) -> Path:
    """Where what the job answered to these lists lies, or will lie: with result.json when it is all there."""
    key = digest({"lists": lists_hash, "precision": job.sizes.precision, "shortlist": SHORTLIST})
    return job.folder / f"evaluation-{key[:12]}"


def evaluate(job: Job, lists: Path, lists_hash: str) -> dict[str, Any]:
    """Train, then ask the lists by every score that the system has; or find what is done. ``folder``: where the scores
    of each query lie, SCORE.parquet; ``validation``: how well each score ranks the validation lists."""
    trained, folder = train(job), answers_of(job, lists_hash)
    done = folder / "result.json"
    if not done.exists():
        folder.mkdir(exist_ok=True)
        keep, ours = folder / "parts", not isinstance(job.system, Baseline)
        found = run_evaluation(
            job.folder / trained["model"], job.stock.path, candidates_from=lists, score="all",
            shortlist=SHORTLIST if ours else None, precision=job.sizes.precision if ours else "fp32", keep=keep,
            load=load_scorer,
        )  # fmt: skip
        for name, scored in found.ranked.scored.items():
            run = f"{job.system.name} by {name}"
            write_scores(folder / f"{name}.parquet", found.store, scored, lists=found.result["lists"], run=run)
        write_json(done, found.result | {"validation": found.ranked.validation})
        forget(keep)
    return {"trained": trained, "result": read_json(done, REMEDY), "folder": folder}
