"""Asked to stop, by one rank, by all or by the launcher, all ranks save the same step and are gone in time."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from fashionbert_fast.engine.reporting.metrics import read_metrics
from fashionbert_fast.run_directory import newest_valid
from tests.reliability import workload
from tests.reliability.trial import Trial, attempt
from tests.reliability.workload import Launched, overrides, shared_store

NAME = "signals"
TARGET = "SIGTERM to one rank, to all, to torchrun: the same step saved by all within 10 s"
SECONDS = 10
WAYS = ("one rank", "all", "torchrun")
ENDLESS = ("train.steps=100000", "train.checkpoint_every=0")


def trials(folder: Path, seed: int, quick: bool) -> Iterator[Trial]:
    store, draw = shared_store(folder), random.Random(seed)
    for number in range(3 if quick else 20):
        way, stage = WAYS[number % len(WAYS)], draw.choice(workload.STAGES)
        settings = overrides(store, folder, *ENDLESS, f"train.zero_stage={stage}")
        work = partial(stops, settings, way, draw.randrange(2**31))
        yield attempt(folder, NAME, f"{number}: to {way}, stage {stage}", work)


def stops(settings: list[str], way: str, seed: int, directory: Path) -> None:
    """One run under torchrun, told to stop at a random moment after its first steps."""
    run, draw = directory / "run", random.Random(seed)
    with Launched(workload.PROCESSES, directory, [*settings, f"train.output={run}"]) as launched:
        launched.until(lambda: len(read_metrics(run)) > 3)
        time.sleep(draw.uniform(0, 1))
        ranks = launched.ranks()
        assert len(ranks) == workload.PROCESSES, f"{len(ranks)} ranks"
        whom = {"one rank": [draw.choice(ranks)], "all": ranks, "torchrun": [launched.process.pid]}[way]
        asked = time.monotonic()
        for process in whom:
            os.kill(process, signal.SIGTERM)
        launched.until(lambda: not launched.living(ranks), SECONDS)
        took = time.monotonic() - asked
        launched.process.wait(workload.PATIENCE)
        said = launched.said()
    assert took < SECONDS, f"gone after {took:.1f} s"
    newest, complaints = newest_valid(run)
    assert newest is not None, f"nothing is saved: {complaints}"
    step = int(newest.name.rpartition("-")[2])
    assert f"step {step} is saved" in said, launched.last_words()
    assert read_metrics(run)[-1]["step"] == step, f"step {read_metrics(run)[-1]['step']} was logged, {step} saved"
