"""A rank that is stopped and a step that does not end are found by all, who leave their stacks; nothing else is."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY_MODEL
from training import ENVIRONMENT

from fashionbert_fast.engine.health import watchdog
from fashionbert_fast.engine.health.watchdog import Peer
from fashionbert_fast.engine.reporting.metrics import read_metrics

WORKER = Path(__file__).with_name("watchdog_worker.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def _started(store: Path, output: Path, *before: str, launcher: list[str] | None = None) -> subprocess.Popen:
    """The run in processes of its own. before: the worker's own words, then fields."""
    words = ["pretrain", "--config", str(output.parent / "tiny.yaml"), f"data.store={store}", f"train.output={output}"]
    (output.parent / "tiny.yaml").write_text("train: {micro_batch_size: 8, log_every: 1, checkpoint_every: 0}")
    command = [*(launcher or TORCHRUN), str(WORKER), *before[:3], *words, *TINY_MODEL, *before[3:]]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _until(condition, seconds: float = 120) -> None:
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline, "it did not come to that in time"
        time.sleep(0.05)


def _ranks(launcher: subprocess.Popen) -> list[int]:
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    by_rank = sorted(children, key=lambda pid: b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes())
    assert len(by_rank) == 2
    return [int(pid) for pid in by_rank]


def _the_line(stderr: str) -> str:
    (line,) = [line for line in stderr.splitlines() if line.startswith("fashionbert pretrain: error: ")]
    assert "fashionbert_fast/engine" not in stderr  # no traceback but torchrun's own
    return line


REAL = [pytest.param("1.0", victim, marks=pytest.mark.slow) for victim in (0, 1)]


@pytest.mark.parametrize(("tick", "victim"), [("0.6", 1), *REAL])
def test_a_stopped_rank_ends_the_others_with_their_stacks(store_path, tmp_path, tick, victim):
    """With hearts as they beat in earnest (1.0), within 15 s. Beating faster leaves a busy machine less room: at 0.3 it
    came 40 ms late once."""
    run, limit = tmp_path / "run", 15 * float(tick)
    process = _started(store_path, run, tick, "nothing", "0", "train.steps=100000")
    _until(lambda: len(read_metrics(run)) > 3)
    ranks = _ranks(process)
    os.kill(ranks[victim], signal.SIGSTOP)
    stopped = time.time()
    stacks = run / "stacks" / f"rank-{1 - victim}.txt"
    _until(lambda: stacks.exists() and "train_step" in stacks.read_text(), limit)
    assert time.time() - stopped > watchdog.MOST_SILENT * float(tick) / 2
    if float(tick) < 1:  # else torchrun comes to it after half a minute
        _until(lambda: not Path(f"/proc/{ranks[1 - victim]}/stat").exists(), 30)
        os.kill(ranks[victim], signal.SIGKILL)
    _, stderr = process.communicate(timeout=90)
    assert process.returncode == 1
    line = _the_line(stderr)
    assert f"nothing was heard of rank {victim} for" in line
    assert str(run / "stacks") in line and "--resume" in line
    assert [path.name for path in (run / "stacks").iterdir()] == [f"rank-{1 - victim}.txt"]
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)


def test_neither_a_long_validation_nor_a_suspended_job_is_taken_for_a_stop(store_path, tmp_path):
    """A rank that validates for 4 s, and all of them suspended for 4 s, where 2 s of silence end a run."""
    run = tmp_path / "run"
    process = _started(
        store_path, run, "0.2", "validation", "1", "train.steps=40", "validation.every=40",
        "train.log_every=10", "train.step_timeout=60",
    )  # fmt: skip
    _until(lambda: read_metrics(run))
    ranks = _ranks(process)
    for rank in ranks:
        os.kill(rank, signal.SIGSTOP)
    time.sleep(2 * watchdog.MOST_SILENT * 0.2)
    for rank in ranks:
        os.kill(rank, signal.SIGCONT)
    _, stderr = process.communicate(timeout=180)
    assert process.returncode == 0, stderr[-3000:]
    assert "validation" in read_metrics(run)[-1]
    assert not (run / "stacks").exists()


TWO = pytest.param(TORCHRUN, id="two processes", marks=pytest.mark.slow)


@pytest.mark.parametrize("launcher", [pytest.param([sys.executable], id="one process"), TWO])
def test_a_step_that_does_not_end_ends_all_ranks(store_path, tmp_path, launcher):
    run, ranks = tmp_path / "run", 1 if len(launcher) == 1 else 2
    process = _started(store_path, run, "0.3", "step", str(ranks - 1), "train.step_timeout=4", launcher=launcher)
    _, stderr = process.communicate(timeout=90)
    assert process.returncode == 1
    line = _the_line(stderr)
    assert "has ended no step for 4 s (train.step_timeout)" in line and "--resume" in line
    written = [(run / "stacks" / f"rank-{rank}.txt").read_text() for rank in range(ranks)]
    assert "in step_or_hang" in written[-1]
    assert all("in train" in text and "has ended no step" in text for text in written)


def test_what_a_peer_says_is_understood_in_pieces():
    here, there = socket.socketpair()
    here.setblocking(False)
    peer = Peer(3, here)
    assert (peer.hear(), peer.silent) == (None, 1)
    there.send(b"..")
    assert (peer.hear(), peer.silent, peer.left) == (None, 0, False)
    there.send(b".!rank 1 - is ")
    assert peer.hear() is None
    there.send(b"gone!\n")
    assert peer.hear() == "rank 1 - is gone!"
    assert not peer.left
    other = Peer(4, here)
    there.send(b".-")
    there.close()
    assert (other.hear(), other.left, other.silent) == (None, True, 0)
    assert (other.hear(), other.silent) == (None, 1)
    other.send(b".")  # to nobody: its silence tells
    here.close()
