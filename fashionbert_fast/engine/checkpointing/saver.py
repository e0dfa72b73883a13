"""Checkpoints: complete or not there, written beside training; run_directory.py has the layout and reads it.

Every rank copies its state to host memory and writes it into a temporary sibling from a thread of its own, while
training goes on; when all have, rank 0 adds the model and the manifest and renames the directory. A killed run leaves
a whole checkpoint or none. What cannot be written, for want of room or because a disk fails, costs this checkpoint and
a line. A checkpoint may come from a stranger: it holds tensors (safetensors) and JSON, and nothing of it is unpickled.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError

from fashionbert_fast.config import TrainConfig
from fashionbert_fast.data.tokenizer import copy_tokenizer
from fashionbert_fast.distributed import barrier, first_of_all_ranks, is_main, world_size
from fashionbert_fast.engine.build import Run
from fashionbert_fast.engine.health.nonfinite import require_finite
from fashionbert_fast.engine.health.signals import Interrupted
from fashionbert_fast.engine.train_state import TrainState
from fashionbert_fast.errors import InputError, TrainingStopped
from fashionbert_fast.files import fsync, seal
from fashionbert_fast.profiling import ranges
from fashionbert_fast.run_directory import (
    BEST,
    DAMAGED,
    MANIFEST,
    MODEL,
    STATE,
    TRAINING,
    best_step,
    checkpoint_name,
    damage,
    list_checkpoints,
    sha256,
    written,
)


class Saver:
    """Writes a run's checkpoints, one at a time; every rank has one and calls `begin`, `advance` and `finish` alike.

    At the end of its context what was begun is finished, unless a rank failed by itself: others would wait for it.
    """

    def __init__(
        self, engine, run: Path, tokenizer: Path, config_yaml: str, train: TrainConfig, state: TrainState | None = None
    ) -> None:
        self.engine, self.run, self.tokenizer, self.config_yaml, self.train = engine, run, tokenizer, config_yaml, train
        self.state = TrainState() if state is None else state
        self.step, self.best = 0, False  # of the checkpoint that is being written
        self.parts = False  # whether ranks may still write their parts of it
        self.work: threading.Thread | None = None
        self.memory: dict[str, torch.Tensor] = {}  # that a snapshot takes, kept for the next
        self.error: str | None = None  # why this rank could not write, not yet told
        self.broken: str | None = None  # the same, where weights are not finite: then the run is over
        self.outcome: str | None = None  # why the last that was begun is not written

    @classmethod
    def of(cls, run: Run) -> Self:
        """That of a run, whose `TrainState` it saves."""
        config = run.config
        return cls(run.engine, run.directory, run.tokenizer_dir, config.to_yaml(), config.train, run.state)

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        if kind is None or issubclass(kind, (Interrupted, TrainingStopped)):  # which all ranks raise alike
            self.finish()

    @property
    def partial(self) -> Path:
        final = self.run / "checkpoints" / checkpoint_name(self.step)
        return final.with_name(f".{final.name}.partial")

    @property
    def writing(self) -> bool:
        """Whether this rank still writes its part."""
        return self.parts and self.work is not None and self.work.is_alive()

    @property
    def failed(self) -> bool:
        return self.error is not None

    def begin(self, step: int, best: bool = False) -> None:
        """Copy the state after ``step`` and write it from here on, once the one before is written. A collective.

        Args:
            best: let RUN/checkpoints/best name it when it is whole.
        """
        from fashionbert_fast.engine.zero.state import take_snapshot

        self.finish()
        snapshot = take_snapshot(self.engine, self.memory)
        snapshot.training["run"] = asdict(self.state)
        self.memory = snapshot.tensors
        self.step, self.best, self.outcome = step, best, None
        self.error = self._prepare() if is_main() else None
        if first_of_all_ranks(self.error) is not None:
            self._give_up()
            return
        self.parts = True

        def write() -> None:
            require_finite(snapshot.masters(), step)
            directory = self.partial / STATE
            directory.mkdir(parents=True, exist_ok=True)  # shared file systems may show rank 0's late
            fsync(snapshot.write(directory))
            if is_main():
                (directory / TRAINING).write_text(json.dumps(snapshot.training, indent=2) + "\n")
                (self.partial / "config.yaml").write_text(self.config_yaml)
                copy_tokenizer(self.tokenizer, self.partial / MODEL)

        self._start(write)

    def save(self, step: int, *, best: bool, wait: bool) -> None:
        """`begin`, and where ``wait``, `finish`. InputError: it waited, and the step is not saved. A collective."""
        with ranges.phase("checkpoint"):
            self.begin(step, best)
            why = self.finish() if wait else None
        if why is not None:
            raise InputError(f"{self.run}: its last step, {step}, is not saved: {why}; then --resume")

    def advance(self, writing: int, failed: int) -> None:
        """Between steps: go on where all ranks' parts are written. ``writing``, ``failed``: how many ranks are.

        Raises:
            TrainingStopped: a weight was not finite, on any rank; nothing is written or dropped.
        """
        if self.parts and not writing:
            self._join()
            self.parts = False
            if failed:
                self._give_up_parts()
            elif is_main():
                self._start(self._complete)
        elif not self.parts and self.work is not None and not self.work.is_alive():
            self._join()
            if self.error is not None:
                self._give_up()

    def finish(self) -> str | None:
        """Wait until what was begun is written, or is not: then why, the same on all ranks. A collective.

        Raises:
            TrainingStopped: as `advance`.
        """
        self._join()
        if self.parts:
            self.parts = False
            if first_of_all_ranks(self.error) is not None:
                self._give_up_parts()
            elif is_main():
                self._try(self._complete)
        if self.error is not None:
            self._give_up()
        self.outcome = first_of_all_ranks(self.outcome)
        return self.outcome

    def _start(self, write: Callable[[], None]) -> None:
        self.work = threading.Thread(target=self._try, args=(write,), name="checkpoint", daemon=True)
        self.work.start()

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except TrainingStopped as stopped:
            self.error = self.broken = str(stopped)
        except (OSError, SafetensorError, InputError) as error:
            lack = _lack_of_space(self.run, space_needed(self.run, self.engine.module))
            self.error = lack or " ".join(str(error).split())
        except BaseException as error:
            self.error = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise  # a defect: threading tells of it in full

    def _join(self) -> None:
        if self.work is not None:
            self.work.join()
            self.work = None

    def _give_up_parts(self) -> None:
        broken = first_of_all_ranks(self.broken)
        if broken is None:
            self._give_up()
            return
        self.error = self.broken = None
        self._clear()
        raise TrainingStopped(broken)

    def _give_up(self) -> None:
        """Leave nothing of the checkpoint behind, and say what this rank knows of it. The next is tried in its turn."""
        if self.error is not None:
            rank = "" if world_size() == 1 else f" (rank {torch.distributed.get_rank()})"
            reason = f"the checkpoint of step {self.step} is not written{rank}: {self.error}"
            print(f"{reason}; training goes on to the next", flush=True)
            self.outcome, self.error = self.error, None
        self._clear()

    def _clear(self) -> None:
        if is_main():
            shutil.rmtree(self.partial, ignore_errors=True)

    def _prepare(self) -> str | None:
        """An empty temporary directory; or why there is none."""
        lack = _lack_of_space(self.run, space_needed(self.run, self.engine.module))
        if lack is not None:
            return lack
        try:
            for left_behind in (self.run / "checkpoints").glob(".*.partial"):
                shutil.rmtree(left_behind) if left_behind.is_dir() else left_behind.unlink()
            (self.partial / STATE).mkdir(parents=True)
        except OSError as error:
            return str(error)
        return None

    def _complete(self) -> None:
        """What only one rank can: the model of all parts, the manifest, the name; then drop old checkpoints."""
        from fashionbert_fast.engine.zero.state import shapes_of, whole_weights

        weights = whole_weights(self.partial / STATE, shapes_of(self.engine.module))
        self.engine.module.save_pretrained(self.partial / MODEL, state_dict=weights)
        _seal(self.partial, self.step)
        final = self.run / "checkpoints" / checkpoint_name(self.step)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(self.partial, final)
        fsync(final.parent)
        try:
            if self.best:
                _mark_best(self.run, final)
            _drop_old(self.run, self.train.keep_checkpoints, self.train.keep_hours)
        except OSError as error:  # the checkpoint itself is whole
            print(f"{final} is written; what it replaces stays: {error}", flush=True)


def save_checkpoint(engine, run: Path, step: int, tokenizer: Path, config_yaml: str, train: TrainConfig) -> Path | None:
    """Write checkpoint ``step`` and wait for it: its directory, or None, with a line that says why. A collective."""
    saver = Saver(engine, run, tokenizer, config_yaml, train)
    saver.begin(step)
    saver.finish()
    final = run / "checkpoints" / checkpoint_name(step)
    return final if (final / MANIFEST).exists() else None


def space_needed(run: Path, module: torch.nn.Module) -> int:
    """Bytes: what the newest checkpoint takes; where there is none, those of float32 weights twice, Adam's two moments
    and a quarter more."""
    from fashionbert_fast.engine.zero.state import shapes_of

    listed = list_checkpoints(run)
    if listed:
        return sum(path.stat().st_size for path in listed[-1].rglob("*") if path.is_file())
    return 5 * 4 * sum(shape.numel() for shape in shapes_of(module).values())


def _lack_of_space(run: Path, needed: int) -> str | None:
    free = shutil.disk_usage(run).free
    return f"{run} has {free / 1e9:.2f} GB free and needs {needed / 1e9:.2f}" if free < needed else None


def _drop_old(run: Path, keep: int, hours: float) -> None:
    """Remove all but the newest ``keep`` checkpoints, the best, and one for each ``hours`` (0: none)."""
    best, last = best_step(run), -float("inf")
    for old in list_checkpoints(run)[:-keep]:
        at = written(old)
        if hours and at - last >= 3600 * hours:
            last = at
        elif best is None or old.name != checkpoint_name(best):
            shutil.rmtree(old)


def _mark_best(run: Path, checkpoint: Path) -> None:
    """Let RUN/checkpoints/best name ``checkpoint``, at once or not at all."""
    link = run / "checkpoints" / BEST
    partial = link.with_name(f".{BEST}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(checkpoint.name)  # relative: a run directory may be moved
    if link.is_dir() and not link.is_symlink():
        shutil.rmtree(link)  # a copy of the run that followed the link made a directory of it
    os.replace(partial, link)
    fsync(link.parent)


def _seal(directory: Path, step: int) -> None:
    """Write the manifest over every file, all flushed to disk with the directories that name them."""
    files = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        fsync(path)
        files[str(path.relative_to(directory))] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    manifest = {"step": step, "world_size": world_size(), "written": time.time(), "files": files}
    (directory / MANIFEST).write_text(json.dumps(seal(manifest), indent=2) + "\n")
    for path in (directory / MANIFEST, directory / STATE, directory / MODEL, directory):
        fsync(path)


def newest_whole(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole to every rank, and what was wrong with newer ones, which are set aside: under
    another name they are no longer counted by retention, and nothing is lost. Every rank calls it."""
    complaints = []
    for checkpoint in reversed(list_checkpoints(run)):
        wrong = first_of_all_ranks(damage(checkpoint))
        if wrong is None:
            return checkpoint, complaints
        if is_main():
            aside = _set_aside(checkpoint)
            complaints.append(f"{checkpoint}: {wrong}; it is {aside.name} now")
        barrier()
    return None, complaints


def _set_aside(checkpoint: Path) -> Path:
    aside, number = checkpoint.with_name(DAMAGED + checkpoint.name), 1
    while aside.exists():
        number += 1
        aside = checkpoint.with_name(f"{DAMAGED}{checkpoint.name}.{number}")
    os.replace(checkpoint, aside)
    return aside


def load_checkpoint(engine, checkpoint: Path) -> int:
    """Restore engine, optimizer and schedule from a verified checkpoint, of any number of ranks and any ZeRO stage;
    returns its step. Every rank calls it."""
    from fashionbert_fast.engine.zero.state import restore

    with _loading(checkpoint):
        restore(engine, checkpoint / STATE)
    return json.loads((checkpoint / MANIFEST).read_text())["step"]


def load_train_state(checkpoint: Path) -> TrainState | None:
    """What a verified checkpoint says of its run; None: it was written before checkpoints said so."""
    with _loading(checkpoint):
        training = json.loads((checkpoint / STATE / TRAINING).read_text())
        return TrainState.of(training["run"]) if "run" in training else None


@contextlib.contextmanager
def _loading(checkpoint: Path) -> Iterator[None]:
    """InputError for whatever a file that is not what it should be raises in the block."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{checkpoint}: its state cannot be loaded ({reason}); resume from an earlier one by moving it away"
        ) from error
