"""Runs small enough to be broken by the hundred: a store of drawn features, a tiny model, and ranks that start at once.

Importing takes a process seconds, a tiny run less. So ranks are forked from one process that has imported everything
(multiprocessing's forkserver): they are processes like any other, each of its own process group, with
`fashionbert pretrain` as its whole life.
"""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import NamedTuple

from fashionbert_fast.engine.reporting.metrics import read_metrics
from fashionbert_fast.run_directory import MANIFEST, damage, list_checkpoints

ROOT = Path(__file__).parents[2]
GRID, FEATURES = 2, 24
TITLES = ("red", "blue", "green", "black"), ("shirt", "jacket", "boot", "sandal", "tee", "sneaker")
# A hidden size of 128: matrices that ZeRO-3 does not keep whole. Dropout is as by default.
TINY = ("model.hidden_size=128", "model.heads=2", "model.layers=1", "model.intermediate_size=128",
        "model.vocab_size=120", "train.lr=1e-3", "train.log_every=1", "train.micro_batch_size=4", "train.steps=16",
        "train.checkpoint_every=3")  # fmt: skip
NO_DROPOUT = ("model.hidden_dropout=0", "model.attention_dropout=0", "model.patch_dropout=0", "contrastive.dropout=0")
STAGES, PRECISIONS = (0, 1, 2, 3), ("fp32", "bf16")
PROCESSES = 2  # of a run, where a proof does not say how many; `--processes`
PATIENCE = 120.0  # seconds: what takes longer hangs


def write_store(path: Path, products: int = 96, seed: int = 0) -> Path:
    """A feature store of ``products`` whose patches carry what the titles name, plus noise, most with a query."""
    import torch

    from benchmarks.steps.workload import drawn_manifest
    from fashionbert_fast.catalogue.product import Product
    from fashionbert_fast.features.store import StoreWriter

    colours, garments = TITLES
    generator = torch.Generator().manual_seed(seed)
    colour_CD, garment_GD = (torch.randn(len(words), FEATURES, generator=generator) for words in TITLES)
    listed, features = [], []
    for i in range(products):
        colour, garment = i % len(colours), i % len(garments)
        title = f"{colours[colour]} {garments[garment]} model {i % 10}"
        listed.append(Product(f"p{i}", title, f"kind {garment % 2}", garments[garment], Path(f"{i}.jpg"), "train",
                              queries=f"{garments[garment]} in {colours[colour]}" if i % 4 else ""))  # fmt: skip
        noise = torch.randn(GRID * GRID, FEATURES, generator=generator) * 0.5  # patches of one photo differ
        features.append(colour_CD[colour] + garment_GD[garment] + noise)
    with StoreWriter(path, patches=GRID * GRID, feature_size=FEATURES, dtype="float32") as writer:
        writer.append(listed, torch.stack(features))
        writer.commit(drawn_manifest(GRID, 32, FEATURES))
    return path


def shared_store(folder: Path) -> Path:
    """The store of all proofs that run below ``folder``."""
    store = folder / "store"
    return store if store.exists() else write_store(store)


def overrides(store: Path, run: Path, *more: str) -> list[str]:
    """Of a tiny run on ``store`` into ``run``; ``more`` wins."""
    return [f"data.store={store}", f"train.output={run}", *TINY, *more]


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return next((line for line in reversed(lines) if line.strip()), "nothing")


# Ranks ----------------------------------------------------------------------------------------------------------------
def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _end_with_harness() -> None:
    """A rank's parent is the process it was forked from, which lives as long as its ranks: nobody would end them."""
    harness = multiprocessing.parent_process()
    assert harness is not None
    harness.join()
    os.kill(os.getpid(), signal.SIGKILL)


def _rank(rank: int, environment: dict[str, str], log: Path, work: Callable, arguments: tuple) -> None:
    os.setsid()
    threading.Thread(target=_end_with_harness, daemon=True).start()
    multiprocessing.set_start_method(None, force=True)  # of loaders: what it is in any other process
    os.environ |= environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)
    faulthandler.register(signal.SIGUSR2, all_threads=True)  # where it stands, into its log, when it is given up
    import torch

    torch.set_num_threads(1)
    sys.exit(work(*arguments))


class Ranks:
    """``count`` processes of one process group, each with ``work(*arguments)`` as its whole life; what it returns is
    its exit status. Left, they are gone. ``logs``: what each printed, appended to."""

    def __init__(self, count: int, folder: Path, work: Callable, *arguments: object) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.reliability.warm"])
        environment = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
                       "MASTER_PORT": str(_free_port())}  # fmt: skip
        self.logs = [folder / f"rank-{rank}.log" for rank in range(count)]
        self.since = time.monotonic()
        self.processes = [
            context.Process(target=_rank, args=(rank, environment, log, work, arguments))
            for rank, log in enumerate(self.logs)
        ]
        for process in self.processes:
            process.start()

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_) -> None:
        self.send(signal.SIGKILL)
        for process in self.processes:
            process.join()
            process.close()

    def send(self, number: int, ranks: Sequence[int] | None = None) -> None:
        """A signal to these ranks, by default to all, one after the other as fast as it goes."""
        for process in self.processes if ranks is None else [self.processes[rank] for rank in ranks]:
            with contextlib.suppress(ProcessLookupError):
                if process.exitcode is None:
                    os.kill(process.pid, number)

    def wait(self, seconds: float = PATIENCE) -> list[int]:
        """The exit status of each, once all have ended; AssertionError where they have not within ``seconds``."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        if any(process.exitcode is None for process in self.processes):
            self.ask_where()
            raise AssertionError(f"still running after {seconds:.0f} s")
        return [process.exitcode for process in self.processes]

    def succeed(self, seconds: float = PATIENCE) -> None:
        """Wait for the good end of all; AssertionError with what they said last."""
        statuses = self.wait(seconds)
        assert not any(statuses), f"exit statuses {statuses}: {self.last_words()}"

    def until(self, condition: Callable[[], bool], seconds: float = PATIENCE, poll: float = 0.002) -> bool:
        """Whether ``condition`` came true before a rank ended; AssertionError where neither did within ``seconds``."""
        deadline = time.monotonic() + seconds
        while not condition():
            if connection.wait([process.sentinel for process in self.processes], poll):
                return condition()
            if time.monotonic() > deadline:
                self.ask_where()
                raise AssertionError(f"nothing came of it in {seconds:.0f} s")
        return True

    def ask_where(self) -> None:
        """Have each rank write the stacks of its threads into its log."""
        self.send(signal.SIGUSR2)
        time.sleep(1)

    def said(self) -> str:
        return "".join(log.read_text(errors="replace") for log in self.logs if log.exists())

    def last_words(self) -> str:
        return " | ".join(map(last_line, self.logs))


def fashionbert(*words: str) -> int:
    """`fashionbert WORDS`: for `Ranks`."""
    from fashionbert_fast.cli import main

    return main(list(words))


def pretrain_words(folder: Path, settings: Sequence[str], resume: bool = False) -> list[str]:
    """`pretrain` with these settings, and the defaults for all others."""
    config = folder / "empty.yaml"
    config.write_text("{}\n")
    return ["pretrain", "--config", str(config), *settings, *(["--resume"] if resume else [])]


def pretraining(count: int, folder: Path, settings: Sequence[str], resume: bool = False) -> Ranks:
    """`fashionbert pretrain` on ``count`` ranks that log into ``folder``."""
    return Ranks(count, folder, fashionbert, *pretrain_words(folder, settings, resume))


def finish(count: int, folder: Path, settings: Sequence[str], resume: bool = False, seconds: float = PATIENCE) -> str:
    """The same to its end, which is a good one; what was printed."""
    with pretraining(count, folder, settings, resume) as ranks:
        ranks.succeed(seconds)
        return ranks.said()


def kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def children(process: int) -> list[int]:
    """Processes that its first thread has begun and not yet waited for."""
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


class Launched:
    """`fashionbert pretrain` under torchrun, for what the launcher has a part in. Left, it and its ranks are gone."""

    def __init__(self, count: int, folder: Path, settings: Sequence[str], resume: bool = False) -> None:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        words = pretrain_words(folder, settings, resume)
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self.log, self.found = folder / "torchrun.log", []
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*launcher, "-m", "fashionbert_fast", *words],
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}, stdout=log, stderr=log,
            )  # fmt: skip

    def __enter__(self) -> Launched:
        return self

    def __exit__(self, *_) -> None:
        for process in {self.process.pid, *self.found, *self.ranks()}:
            kill(process)
        self.process.wait()

    def ranks(self) -> list[int]:
        """Process ids by rank, as long as the launcher lives."""
        ranks = {}
        for child in children(self.process.pid):
            with contextlib.suppress(OSError):
                environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
                ranks |= {int(entry[5:]): child for entry in environment if entry.startswith(b"RANK=")}
        self.found = [ranks[rank] for rank in sorted(ranks)]
        return self.found

    @staticmethod
    def living(processes: Sequence[int]) -> list[int]:
        """Those that have not ended; one that nobody has waited for yet has."""

        def lives(process: int) -> bool:
            try:
                return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
            except OSError:
                return False

        return [process for process in processes if lives(process)]

    def until(self, condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
        """AssertionError where that does not come true within ``seconds``."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"nothing came of it in {seconds:.0f} s: {self.last_words()}"
            time.sleep(0.02)

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def last_words(self) -> str:
        return last_line(self.log)


# What a run comes to --------------------------------------------------------------------------------------------------
def losses_of(run: Path) -> list[dict]:
    """Its logged records without what depends on the clock."""
    timed = {"samples_per_s", "tokens_per_s", "mfu", "phases"}
    return [{key: value for key, value in record.items() if key not in timed} for record in read_metrics(run)]


def state_hash(checkpoint: Path) -> str:
    """Of every tensor and number that a run goes on from: all of a checkpoint but its manifest and settings, which name
    the run directory."""
    digest = hashlib.sha256()
    for path in sorted(checkpoint.rglob("*")):
        name = str(path.relative_to(checkpoint))
        if path.is_file() and name not in (MANIFEST, "config.yaml"):
            digest.update(name.encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


class Outcome(NamedTuple):
    """What two runs that learned the same have in common."""

    records: list[dict]  # of every logged step
    state: str  # hash of the last checkpoint's


def outcome(run: Path) -> Outcome:
    """What a run that ended came to; AssertionError where its last checkpoint is damaged."""
    newest = list_checkpoints(run)[-1]
    wrong = damage(newest)
    assert wrong is None, f"{newest.name}: {wrong}"
    return Outcome(losses_of(run), state_hash(newest))


def assert_same(run: Path, reference: Outcome) -> None:
    """AssertionError saying where ``run`` differs from the undisturbed one."""
    mine = outcome(run)
    for record, right in zip(mine.records, reference.records, strict=False):
        assert record == right, f"step {right['step']}: {json.dumps(record)} is not {json.dumps(right)}"
    assert len(mine.records) == len(reference.records), f"{len(mine.records)} records, not {len(reference.records)}"
    assert mine.state == reference.state, "the last checkpoint's state differs"


def saving(run: Path) -> list[Path]:
    """The checkpoints that are being written."""
    return list((run / "checkpoints").glob(".*.partial")) if (run / "checkpoints").is_dir() else []
