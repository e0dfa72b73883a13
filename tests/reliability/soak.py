"""A long run that meets everything, one fault after the other, ends as the run that met nothing."""

from __future__ import annotations

import random
import signal
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from fashionbert_fast.engine.checkpointing.resume import begun
from fashionbert_fast.engine.reporting.metrics import METRICS, read_metrics
from fashionbert_fast.run_directory import list_checkpoints
from tests.reliability import workload
from tests.reliability.damage import broken, put
from tests.reliability.disk import FAULTS, Fault, compiled, on_faulty_disk
from tests.reliability.trial import Trial, attempt
from tests.reliability.workload import (
    Outcome,
    Ranks,
    assert_same,
    children,
    finish,
    outcome,
    overrides,
    pretrain_words,
    shared_store,
)

NAME = "soak"
TARGET = "1,000 steps with 30 faults from a logged seed: the same losses and final state; 3 of 3 seeds"
KINDS = ("kill all", "kill one", "signal one", "stop one", "full disk", "damage the newest", "kill a loader")
# The others are for a run under way: before its ranks have met only a launcher ends those that wait for one.
AT_ANY_TIME = ("kill all", "kill one", "damage the newest")
SETTINGS = ("train.checkpoint_every=7", "train.keep_checkpoints=3", "data.workers=1")


def trials(folder: Path, seed: int, quick: bool) -> Iterator[Trial]:
    store, library = shared_store(folder), compiled(folder)
    steps, faults, seeds = (60, 3, 1) if quick else (1000, 30, 3)
    for number in range(seeds):
        draw = random.Random(f"{seed} {number}")
        stage, precision = draw.choice(workload.STAGES), draw.choice(workload.PRECISIONS)
        how = (f"train.steps={steps}", f"train.zero_stage={stage}", f"train.precision={precision}")
        settings = overrides(store, folder, *SETTINGS, *how)
        kinds = [KINDS[i % len(KINDS)] for i in range(faults)] if not quick else draw.sample(KINDS, faults)
        draw.shuffle(kinds)
        plan = list(zip(sorted(draw.sample(range(10, steps - 5), faults)), kinds, strict=True))
        title = f"seed {seed}, run {number}, stage {stage}, {precision}"
        yield attempt(folder, NAME, title, partial(soaks, library, settings, plan, draw.randrange(2**31)))


def soaks(library: Path, settings: list[str], plan: list[tuple[int, str]], seed: int, directory: Path) -> None:
    """A run through ``plan``, (step, fault), against one without."""
    whole, run = directory / "whole", directory / "run"
    finish(workload.PROCESSES, directory, [*settings, f"train.output={whole}"], seconds=1800)
    soak = Soak(library, [*settings, f"train.output={run}"], run, directory, deque(plan), random.Random(seed))
    soak.run_through()
    right: Outcome = outcome(whole)
    assert_same(run, right)


class Soak:
    """One run and what is still to come to it. A line of `faults.txt` says what came."""

    def __init__(
        self, library: Path, settings: list[str], run: Path, directory: Path, plan: deque[tuple[int, str]],
        draw: random.Random,
    ) -> None:  # fmt: skip
        self.library, self.settings, self.run, self.directory, self.plan, self.draw = (
            library, settings, run, directory, plan, draw
        )  # fmt: skip
        self.disk_fails = False
        self.left = 0  # when the metrics were written last before this session

    def run_through(self) -> None:
        while not self._session():
            pass
        assert not self.plan, f"it ended before {self.plan}"

    def _session(self) -> bool:
        """Start or resume, and let come what comes until the run is ended by it: whether it is done."""
        words = pretrain_words(self.directory, self.settings, begun(self.run))
        fault = Fault(self.library, self.run / "checkpoints", self.directory / "calls")
        if self.disk_fails:
            first, count = self.draw.randint(1, 60), self.draw.randint(1, 60)
            fault = Fault(self.library, fault.directory, fault.log, first, FAULTS["ENOSPC"], count)
        self.disk_fails = False
        self.left = self._written()
        with Ranks(workload.PROCESSES, self.directory, on_faulty_disk, fault, *words) as ranks:
            while self.plan:
                step, kind = self.plan[0]
                assert ranks.until(lambda s=step: self._step() >= s), f"it ended by itself: {ranks.last_words()}"
                self.plan.popleft()
                with (self.directory / "faults.txt").open("a") as file:
                    print(f"step {self._step()}: {kind}", file=file)
                if self._ends(ranks, kind):
                    return False
            ranks.succeed(1800)
            return True

    def _written(self) -> int:
        """When its metrics were written last; 0: never."""
        metrics = self.run / METRICS
        return metrics.stat().st_mtime_ns if metrics.exists() else 0

    def _step(self) -> int:
        records = read_metrics(self.run)
        return records[-1]["step"] if records else 0

    def _ends(self, ranks: Ranks, kind: str) -> bool:
        """Let it come to the run: whether that is over."""
        one = self.draw.randrange(workload.PROCESSES)
        if kind not in AT_ANY_TIME:
            # What is due may be due while a resumed run starts: it writes its metrics anew, and then a step.
            for _ in range(2):
                assert ranks.until(lambda left=self.left: self._written() != left), ranks.last_words()
                self.left = self._written()
        if kind == "kill a loader":
            loaders = children(ranks.processes[one].pid)
            assert loaders, "no loader's process is there"
            workload.kill(self.draw.choice(loaders))
            return False
        if kind in ("signal one", "full disk"):
            ranks.send(signal.SIGTERM, [one])
            ranks.wait(30)
            self.disk_fails = kind == "full disk"
        elif kind == "stop one":
            ranks.send(signal.SIGSTOP, [one])
            others = [process for rank, process in enumerate(ranks.processes) if rank != one]
            assert ranks.until(lambda: all(not process.is_alive() for process in others), 40), "nobody noticed"
        elif kind == "kill one":
            ranks.send(signal.SIGKILL, [one])  # the others: as torchrun ends them
            ranks.send(signal.SIGTERM)
        ranks.send(signal.SIGKILL)
        ranks.wait()
        if kind == "damage the newest":
            checkpoints = list_checkpoints(self.run)
            if len(checkpoints) > 1:  # else it would be all there is
                files = sorted(path for path in checkpoints[-1].rglob("*") if path.is_file())
                path = self.draw.choice(files)
                _, content = self.draw.choice(list(broken(path.read_bytes(), self.draw, 1, 2)))
                put(path, content)
        return True
