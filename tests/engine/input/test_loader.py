"""Loader processes that die cost a line and some time; what is learned stays the same."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, dataloader
from torch.utils.data._utils import signal_handling

from benchmarks.steps.weights import master_weights
from fashionbert_fast.data.pairs import PairDataset
from fashionbert_fast.engine.health.signals import Interrupted
from fashionbert_fast.engine.input.loader import steady_batches
from fashionbert_fast.engine.reporting.metrics import read_metrics
from fashionbert_fast.engine.train import train
from fashionbert_fast.errors import InputError
from fashionbert_fast.run_directory import newest_valid

QUIET = ("validation.every=0", "train.log_every=1", "train.checkpoint_every=0")


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    """Torch looks for a dead process every 5 s while it waits for a batch."""
    monkeypatch.setattr(dataloader._MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))


def _deadly(monkeypatch, step: int, most: int, folder: Path) -> None:
    """Let loader processes be killed, as for want of memory, over ``step`` (from 1), ``most`` times in all."""
    assemble, here = PairDataset.__getitem__, os.getpid()

    def assemble_or_die(self, index):
        marks = list(folder.glob("death-*"))
        if index == step - 1 and os.getpid() != here and len(marks) < most:
            (folder / f"death-{len(marks)}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return assemble(self, index)

    monkeypatch.setattr(PairDataset, "__getitem__", assemble_or_die)


@pytest.mark.parametrize("deaths", [1, 3])
def test_a_run_whose_loader_dies_learns_what_it_would_have(build_run, monkeypatch, tmp_path, capfd, deaths):
    run = build_run(*QUIET, "data.workers=0")
    train(run, 0)
    wanted = [record["losses"] for record in read_metrics(tmp_path)], master_weights(run.engine)
    (tmp_path / "metrics.jsonl").unlink()
    run = build_run(*QUIET, "data.workers=2")
    _deadly(monkeypatch, 5, deaths, tmp_path)
    train(run, 0)
    assert [record["losses"] for record in read_metrics(tmp_path)] == wanted[0]
    assert all(torch.equal(weight, wanted[1][name]) for name, weight in master_weights(run.engine).items())
    told = [line for line in capfd.readouterr().out.splitlines() if "loader process died" in line]
    assert len(told) == deaths
    assert "rank 0: a loader process died (exit code -9); step " in told[0]
    assert f"(death {deaths} in this run)" in told[-1]


def test_a_step_that_no_process_survives_stops_the_run_after_the_one_before(build_run, monkeypatch, tmp_path, capfd):
    run = build_run(*QUIET, "data.workers=2")
    _deadly(monkeypatch, 5, 1000, tmp_path)
    with pytest.raises(Interrupted, match="step 4 is saved"):
        train(run, 0)
    assert newest_valid(tmp_path)[0].name == "step-00000004"
    (line,) = [line for line in capfd.readouterr().out.splitlines() if line.endswith("the run stops")]
    assert "rank 0: its loader processes died 3 times over step 5;" in line


def test_a_first_step_that_no_process_survives_is_one_line(build_run, monkeypatch, tmp_path):
    _deadly(monkeypatch, 1, 1000, tmp_path)
    with pytest.raises(InputError, match=r"rank 0: its loader processes died 3 times over step 1; .* data\.workers=0"):
        next(steady_batches(build_run("data.workers=1"), 0, SimpleNamespace(asked=False)))


@pytest.mark.parametrize("another", [False, True])
def test_a_death_reaches_no_step_and_a_waiting_loader_finds_it(build_run, monkeypatch, another):
    """One dies while the step computes, where torch's handler would raise; another while its batch is waited for.

    another: torch's handler is there already, of some other loader in the process.
    """
    if another:
        monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
        next(iter(DataLoader([0], num_workers=1)))
        assert signal.getsignal(signal.SIGCHLD) is not signal.SIG_DFL
    run = build_run("data.workers=1", "train.steps=60")
    batches = steady_batches(run, 0, SimpleNamespace(asked=False))

    def kill(how: int) -> None:
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, how)

    for step in range(20):
        (batch,) = next(batches)
        assert torch.equal(batch.inputs.input_id_N, run.dataset[step][0].inputs.input_id_N)
        if step == 4:
            kill(signal.SIGKILL)
            time.sleep(0.2)
        elif step == 6:
            kill(signal.SIGSTOP)  # soon nothing is left of what it had ready
            killer = multiprocessing.get_context("spawn").Process(target=_kill_later, args=(_only_worker(),))
            killer.start()
    killer.join()


def _only_worker() -> int:
    (worker,) = multiprocessing.active_children()
    return worker.pid


def _kill_later(process: int) -> None:
    time.sleep(1)
    os.kill(process, signal.SIGKILL)


def test_an_error_of_the_data_itself_is_told_as_it_is(build_run, monkeypatch):
    def broken(self, index):
        raise InputError("row 7: it is broken")

    monkeypatch.setattr(PairDataset, "__getitem__", broken)
    with pytest.raises(InputError, match="row 7: it is broken"):
        next(steady_batches(build_run("data.workers=1"), 0, SimpleNamespace(asked=False)))
