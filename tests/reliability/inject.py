"""A disk that fails at any one call of a save, or a process that dies there, costs no checkpoint but that one.

All in one process: what a save calls is counted, a run of its own for every call and fault."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path

from fashionbert_fast.run_directory import newest_valid
from tests.reliability.disk import CRASH, FAULTS, Fault, compiled, on_faulty_disk
from tests.reliability.trial import Trial, attempt
from tests.reliability.workload import (
    Outcome,
    Ranks,
    assert_same,
    finish,
    outcome,
    overrides,
    pretrain_words,
    shared_store,
)

NAME = "inject"
TARGET = "crash, ENOSPC and EIO at every write, fsync, rename, ... of a save: --resume finds a valid checkpoint"
SAVES = ("train.steps=6", "train.checkpoint_every=2", "train.keep_checkpoints=1")
SAVED, NEXT = "step-00000004", "step-00000006"  # the save that fails: there is one before it, and one after


def trials(folder: Path, seed: int, quick: bool) -> Iterator[Trial]:
    store, library = shared_store(folder), compiled(folder)
    for stage in (1,) if quick else (1, 3):  # one process saves alike at all of them
        home = folder / f"inject-stage-{stage}"
        home.mkdir()
        settings = overrides(store, home / "run", *SAVES, f"train.zero_stage={stage}")
        calls = calls_of_a_save(home, Fault(library, home / "run" / "checkpoints", home / "calls"), settings)
        cases = list(product(calls, FAULTS))
        if quick:
            cases = random.Random(f"{seed} {stage}").sample(cases, 6)
        reference = outcome(home / "run")
        for (number, call), fault in cases:
            title, ended = f"stage {stage}, {fault} at call {number}, {call}", []
            work = partial(survives, library, settings, number, FAULTS[fault], reference, ended)
            yield attempt(folder, NAME, title, work)
            if FAULTS[fault] != CRASH:
                yield Trial(NAME, f"{title}, trains on", ended == [""], "".join(ended))


def calls_of_a_save(home: Path, watched: Fault, settings: list[str]) -> list[tuple[int, str]]:
    """Number and name of each call from the beginning of `SAVED` to that of `NEXT`: of what it drops as well."""
    with Ranks(1, home, on_faulty_disk, watched, *pretrain_words(home, settings)) as ranks:
        ranks.succeed()
    lines = watched.log.read_text().splitlines()
    begins, ends = (next(i for i, line in enumerate(lines) if name in line) for name in (SAVED, NEXT))
    below = str(watched.directory.resolve())
    calls = [line.replace(below + "/", "").split(" ", 1) for line in lines[begins:ends]]
    assert len(calls) > 20, f"a save of {len(calls)} calls: the library does not see them"
    return [(int(number), what) for number, what in calls]


def survives(
    library: Path, settings: list[str], number: int, error: int, reference: Outcome, ended: list[str], directory: Path
) -> None:
    """The run meets that fault; where it ends by it, it is resumed; it comes to the end that it would have come to.
    ``ended``: by what it ended, or nothing."""
    run = directory / "run"
    settings = [*settings, f"train.output={run}"]
    fault = Fault(library, run / "checkpoints", directory / "calls", number, error)
    with Ranks(1, directory, on_faulty_disk, fault, *pretrain_words(directory, settings)) as ranks:
        (status,) = ranks.wait()
        ended.append(ranks.last_words() if status else "")
    if error == CRASH:
        assert status == -signal.SIGKILL, f"it was to be killed, exit status {status}"
    newest, complaints = newest_valid(run)
    assert newest is not None, f"no checkpoint is valid: {complaints}"
    if status != 0:
        finish(1, directory, settings, resume=True)
    assert_same(run, reference)
    left = [path.name for path in (run / "checkpoints").iterdir() if path.name.endswith(".partial")]
    assert not left, f"{left} left behind"
