"""A rank that is stopped ends the others, in time and with their stacks written."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from fashionbert_fast.engine.reporting.metrics import read_metrics
from tests.reliability import workload
from tests.reliability.signals import ENDLESS
from tests.reliability.trial import Trial, attempt
from tests.reliability.workload import Launched, overrides, pretraining, shared_store

NAME = "stop"
TARGET = "SIGSTOP of one rank: detected within 15 s, stacks dumped"
SECONDS = 15
RANKS = 3


def trials(folder: Path, seed: int, quick: bool) -> Iterator[Trial]:
    store, draw = shared_store(folder), random.Random(seed)
    for stage in (1,) if quick else workload.STAGES:
        for stopped in draw.sample(range(RANKS), 1) if quick else range(RANKS):
            settings = overrides(store, folder, *ENDLESS, "train.checkpoint_every=5", f"train.zero_stage={stage}")
            work = partial(is_noticed, settings, stopped, draw.uniform(0, 1))
            yield attempt(folder, NAME, f"stage {stage}, rank {stopped} of {RANKS}", work)


def is_noticed(settings: list[str], stopped: int, pause: float, directory: Path) -> None:
    """One run under torchrun, a rank of it stopped; resumed afterwards it goes on."""
    run = directory / "run"
    settings = [*settings, f"train.output={run}"]
    others = [run / "stacks" / f"rank-{rank}.txt" for rank in range(RANKS) if rank != stopped]
    with Launched(RANKS, directory, settings) as launched:
        launched.until(lambda: len(read_metrics(run)) > 6)
        time.sleep(pause)
        ranks = launched.ranks()
        os.kill(ranks[stopped], signal.SIGSTOP)
        since = time.monotonic()
        launched.until(lambda: all(path.exists() for path in others), 2 * SECONDS)
        took = time.monotonic() - since
        launched.until(lambda: not launched.living([ranks[r] for r in range(RANKS) if r != stopped]), SECONDS)
        launched.until(lambda: not launched.living(ranks), 60)  # torchrun ends the one that is stopped
        said = launched.said()
    assert took < SECONDS, f"stacks after {took:.1f} s"
    for path in others:
        assert " in train\n" in path.read_text(), f"{path.name} does not say where its rank was"
    assert f"rank {stopped}" in said, launched.last_words()
    reached = read_metrics(run)[-1]["step"]
    with pretraining(RANKS, directory, settings, resume=True) as resumed:
        assert resumed.until(lambda: read_metrics(run)[-1]["step"] > reached), resumed.last_words()
