"""Files of strangers, each opened by the command that would: no code runs, no path escapes, no memory or time goes that
a good one would not take, and what is said is a line."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.reliability import corpus, workload
from tests.reliability.trial import Trial, attempt
from tests.reliability.workload import Ranks

NAME = "hostile"
TARGET = "80 artefacts and more: no code runs, no path escapes, < 512 MB more memory, < 5 s, a line"
MOST_BYTES, MOST_SECONDS, PATIENCE = 512 * 2**20, 5.0, 60.0
ALL = corpus.ARTEFACTS


class Cost(NamedTuple):
    """Of one command: the peak of its process and of those that it began, and what it had the processor do. Not the
    time on the clock: the machine may be busy with more than this."""

    bytes: int
    seconds: float


def trials(folder: Path, seed: int, quick: bool) -> Iterator[Trial]:
    home = corpus.Home.make(folder / "hostile-home")
    good = {command: cost_of(folder, words) for command, words in home.good_words().items()}
    chosen = [artefact for number, artefact in enumerate(ALL) if not quick or number % 5 == seed % 5]
    for artefact in chosen:
        yield attempt(folder, NAME, artefact.name, partial(is_harmless, artefact, home, good))


def cost_of(folder: Path, words: Sequence[str]) -> Cost:
    """Of a good input; AssertionError where it does not end well."""
    place = folder / f"hostile-good-{words[0]}"
    place.mkdir()
    status, said, cost = opened(words, place)
    assert status == 0 and cost is not None, f"{words}: {status}: {said}"
    return cost


def opened(words: Sequence[str], place: Path) -> tuple[int, str, Cost | None]:
    """`fashionbert WORDS` in a process of its own: its exit status, what it said, and its cost; None: it was killed."""
    with Ranks(1, place, _measured, place / "cost.json", *words) as ranks:
        (status,) = ranks.wait(PATIENCE)
        said = ranks.said()
    costs = place / "cost.json"
    return status, said, Cost(**json.loads(costs.read_text())) if costs.exists() else None


def _measured(costs: Path, *words: str) -> int:
    """The command, and what it cost beyond the process that it was forked from."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = _resident("VmRSS")
    started = resource.getrusage(resource.RUSAGE_SELF)
    os.environ[corpus.SECRET_NAME] = corpus.SECRET
    try:
        status = workload.fashionbert(*words)
    except SystemExit as usage:  # argparse
        status = usage.code if isinstance(usage.code, int) else 1
    mine, theirs = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = mine.ru_utime + mine.ru_stime - started.ru_utime - started.ru_stime + theirs.ru_utime + theirs.ru_stime
    peak = _resident("VmHWM") - before + theirs.ru_maxrss * 1024
    costs.write_text(json.dumps({"bytes": peak, "seconds": seconds}))
    return status


def _resident(which: str) -> int:
    return int(Path("/proc/self/status").read_text().partition(f"{which}:")[2].split()[0]) * 1024


def is_harmless(artefact: corpus.Artefact, home: corpus.Home, good: Mapping[str, Cost], place: Path) -> str:
    """AssertionError saying what it did; else what it cost."""
    trap = corpus.Trap.set(place / "outside")
    words = artefact.make(corpus.Bench(home, trap, place))
    status, said, cost = opened(words, place)
    judge(artefact.status, status, said, cost, good[words[0]])
    trap.check(said, place)
    assert cost is not None
    shutil.rmtree(place / "outside")
    return f"{(cost.bytes - good[words[0]].bytes) / 2**20:+.0f} MB, {cost.seconds:.1f} s"


def judge(expected: int, status: int, said: str, cost: Cost | None, good: Cost) -> None:
    """AssertionError unless a command ended as expected, with a line where that is bad input, at the cost of a good
    one and a bounded more."""
    lines = [line for line in said.splitlines() if line.strip()]
    assert "Traceback" not in said and "Fatal Python error" not in said, f"a traceback: {lines[-1]}"
    assert cost is not None, f"killed, with exit status {status}"
    assert status == expected, f"exit status {status}, not {expected}: {lines[-1:]}"
    complaints = [line for line in lines if line.startswith("fashionbert ") and ": error: " in line]
    if expected == 2:
        assert len(complaints) == 1 and lines[-1] == complaints[0], f"not one line: {lines[-3:]}"
        assert len(complaints[0]) < 1500, f"a line of {len(complaints[0])} characters"
    more = cost.bytes - good.bytes
    assert more < MOST_BYTES, f"{more / 2**20:.0f} MB more than a good input"
    assert cost.seconds < MOST_SECONDS, f"{cost.seconds:.1f} s"
