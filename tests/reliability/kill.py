"""Killed at random moments, half of them while it saves, a run comes to the end that it would have come to."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from fashionbert_fast.engine.checkpointing.resume import begun
from tests.reliability import workload
from tests.reliability.trial import Trial, attempt
from tests.reliability.workload import (
    PRECISIONS,
    STAGES,
    assert_same,
    finish,
    outcome,
    overrides,
    pretraining,
    saving,
    shared_store,
)

NAME = "kill"
TARGET = "SIGKILL at 20 random moments x stages 0 to 3 x fp32/bf16, half during a save: the same losses and state"


@dataclass
class Killed:
    """Runs of one configuration, the undisturbed one first, and what they are killed by."""

    home: Path
    settings: list[str]  # without the output
    ranks: int
    draw: random.Random
    moments: int  # still to come, and of them:
    saves: int

    def __post_init__(self) -> None:
        """The undisturbed run: how it ends, and how long it and each of its saves take."""
        self.home.mkdir()
        run, moments = self.home / "run", []
        with pretraining(self.ranks, self.home, [*self.settings, f"train.output={run}"]) as ranks:
            while ranks.until(lambda: len(saving(run)) != len(moments) % 2):  # a save began or ended
                moments.append(time.monotonic())
            self.seconds = time.monotonic() - ranks.since
            ranks.succeed()
        spans = [end - begin for begin, end in zip(moments[::2], moments[1::2], strict=False)]
        self.save_seconds = sum(spans) / len(spans)
        self.reference = outcome(run)

    def life(self, kills: list[str], directory: Path) -> None:
        """One run, killed and resumed until it ends or there were moments enough; ``kills`` says what happened."""
        run = directory / "run"
        settings = [*self.settings, f"train.output={run}"]
        while self.moments:
            in_save = 2 * self.saves >= self.moments
            died = self._dies(directory, run, settings, in_save)
            if died is None:
                break
            in_save = died and self.saves > 0
            if not in_save and self.saves == self.moments:
                continue  # it missed the save, and only those are wanted: once more, uncounted
            self.saves, self.moments = self.saves - in_save, self.moments - 1
            kills.append(f"{'during a save' if in_save else 'anywhere'} {self.moments}")
        finish(self.ranks, directory, settings, resume=begun(run))
        assert_same(run, self.reference)

    def _dies(self, directory: Path, run: Path, settings: list[str], in_save: bool) -> bool | None:
        """Start or resume the run and kill it: whether it was saving then; None: it was quicker."""
        with pretraining(self.ranks, directory, settings, resume=begun(run)) as ranks:
            if in_save:
                for _ in range(self.draw.randint(1, 2)):
                    ranks.until(lambda: not saving(run))
                    if not ranks.until(lambda: bool(saving(run))):
                        return None
                pause = self.draw.uniform(0, self.save_seconds)
            else:
                pause = self.draw.uniform(0, self.seconds)
            end = time.monotonic() + pause
            ranks.until(lambda: time.monotonic() >= end)
            ranks.send(signal.SIGKILL)
            killed = -signal.SIGKILL in ranks.wait()
        return bool(saving(run)) if killed else None


def trials(folder: Path, seed: int, quick: bool) -> Iterator[Trial]:
    store = shared_store(folder)
    configurations = [(stage, precision) for stage in STAGES for precision in PRECISIONS]
    for stage, precision in [(1, "fp32"), (3, "bf16")] if quick else configurations:
        for ranks, moments in ((workload.PROCESSES, 2),) if quick else ((workload.PROCESSES, 16), (1, 4)):
            title = f"stage {stage}, {precision}, {ranks} ranks"
            settings = overrides(store, folder, f"train.zero_stage={stage}", f"train.precision={precision}")
            draw = random.Random(f"{seed} {title}")
            try:
                runs = Killed(folder / f"kill {title}", settings, ranks, draw, moments, moments // 2)
            except AssertionError as error:
                yield Trial(NAME, f"{title}: undisturbed", False, str(error))
                continue
            yield from lives(folder, runs, title)


def lives(folder: Path, runs: Killed, title: str) -> Iterator[Trial]:
    """A trial a moment. A run that ends before it was killed is none, unless that is all they do."""
    for life in range(1, 20 * runs.moments):
        kills = []
        trial = attempt(folder, NAME, f"{title}, life {life}", partial(runs.life, kills))
        if not trial.ok and not kills:
            runs.moments, kills = runs.moments - 1, ["before any"]
            runs.saves = min(runs.saves, runs.moments)
        for kill in kills:
            yield replace(trial, name=f"{title}, {kill}")
        if not runs.moments:
            return
    yield Trial(NAME, title, False, f"{runs.moments} moments never came")
