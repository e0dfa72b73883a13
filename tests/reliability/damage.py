"""Damaged checkpoints are found, file by file and bit by bit, and all ranks fall back to the one before."""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from fashionbert_fast.run_directory import damage, list_checkpoints
from tests.reliability import workload
from tests.reliability.trial import Trial, attempt
from tests.reliability.workload import assert_same, finish, outcome, overrides, pretraining, shared_store

NAME = "damage"
TARGET = "every file x {missing, 10 truncations, 100 bit flips}: found; all ranks fall back in < 30 s"
SECONDS = 30


def trials(folder: Path, seed: int, quick: bool) -> Iterator[Trial]:
    store, cuts, flips = shared_store(folder), *((2, 10) if quick else (10, 100))
    for stage in (1,) if quick else workload.STAGES:
        draw = random.Random(f"{seed} {stage}")
        home = folder / f"damage-stage-{stage}"
        home.mkdir()
        settings = overrides(store, home / "run", f"train.zero_stage={stage}")
        finish(workload.PROCESSES, home, settings)
        newest = list_checkpoints(home / "run")[-1]
        files = sorted(path.relative_to(newest) for path in newest.rglob("*") if path.is_file())
        for name in files:
            for what, content in broken((newest / name).read_bytes(), draw, cuts, flips):
                title = f"stage {stage}, {name}, {what}"
                yield attempt(folder, NAME, title, partial(is_found, newest, newest / name, content))
        yield attempt(folder, NAME, f"stage {stage}, intact", partial(is_intact, newest))
        for name in draw.sample(files, 3) if quick else files:
            what, content = draw.choice(list(broken((newest / name).read_bytes(), draw, 1, 1)))
            work = partial(falls_back, home / "run", settings, name, content)
            yield attempt(folder, NAME, f"stage {stage}, {name}, {what}, resumed", work)


def broken(whole: bytes, draw: random.Random, cuts: int, flips: int) -> Iterator[tuple[str, bytes | None]]:
    """What becomes of a file: nothing (None), its first so many bytes, one bit the other way."""
    yield "missing", None
    for length in draw.sample(range(len(whole)), min(cuts, len(whole))):
        yield f"cut to {length}", whole[:length]
    for bit in draw.sample(range(8 * len(whole)), min(flips, 8 * len(whole))):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        yield f"bit {bit}", bytes(flipped)


def put(path: Path, content: bytes | None) -> None:
    path.unlink() if content is None else path.write_bytes(content)


@contextlib.contextmanager
def replaced(path: Path, content: bytes | None) -> Iterator[None]:
    whole = path.read_bytes()
    put(path, content)
    try:
        yield
    finally:
        path.write_bytes(whole)


def is_found(checkpoint: Path, path: Path, content: bytes | None, _: Path) -> None:
    with replaced(path, content):
        assert damage(checkpoint) is not None, "it passes for whole"


def is_intact(checkpoint: Path, _: Path) -> None:
    """Else the trials before would say nothing."""
    assert damage(checkpoint) is None, damage(checkpoint)


def falls_back(whole: Path, settings: list[str], name: Path, content: bytes | None, directory: Path) -> None:
    """A copy of the run ``whole``, with that file of its newest checkpoint replaced, goes on from the one before and
    comes to the same end."""
    run = directory / "run"
    shutil.copytree(whole, run, symlinks=True)
    older, newest = list_checkpoints(run)[-2:]
    put(newest / name, content)
    settings = [*settings, f"train.output={run}"]
    with pretraining(workload.PROCESSES, directory, settings, resume=True) as ranks:
        assert ranks.until(lambda: "resuming from" in ranks.said(), SECONDS), ranks.last_words()
        assert f"resuming from {older}" in ranks.said(), ranks.said()[-600:]
        ranks.succeed()
    assert_same(run, outcome(whole))
