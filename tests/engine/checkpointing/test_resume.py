"""A resumed run is the uninterrupted one, bit for bit, with dropout as it is by default."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from engine import resume_worker
from training import ENVIRONMENT

from fashionbert_fast.engine.build import seed_dropout
from fashionbert_fast.engine.step import train_step
from fashionbert_fast.kernels.dropout import draw_seed


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_one_process(process_group, store_path, tmp_path, stage, precision):
    resume_worker.check(str(store_path), tmp_path, stage, precision, process_group)


@pytest.mark.parametrize("method", ["uncertainty", "dwa", "gradnorm"])
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_with_what_a_weighting_remembers(process_group, store_path, tmp_path, stage, method):
    """Window means, first losses, log-variances: without them the weights would begin anew."""
    more = (f"weighting.method={method}", "weighting.window=1", "weighting.temperature=0.1")
    resume_worker.check(str(store_path), tmp_path, stage, "bf16" if stage == 2 else "fp32", process_group, *more)


def test_two_processes_at_every_stage_and_precision(store_path, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
               str(Path(resume_worker.__file__)), str(store_path), str(tmp_path), "fp32,bf16"]  # fmt: skip
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-6000:]


def test_masks_depend_on_seed_step_micro_batch_and_rank_alone():
    def drawn(*numbers: int) -> tuple[int, tuple[bool, ...]]:
        seed_dropout(torch.device("cpu"), *numbers)
        return draw_seed("cpu").item(), tuple(torch.nn.functional.dropout(torch.ones(64)).bool().tolist())

    torch.manual_seed(0)
    first = drawn(5, 7, 1, 0)
    assert len({*first[1]}) == 2
    torch.rand(3)  # whatever was drawn before
    assert drawn(5, 7, 1, 0) == first
    others = [drawn(*numbers) for numbers in ((6, 7, 1, 0), (5, 8, 1, 0), (5, 7, 0, 0), (5, 7, 1, 1), (5, 1, 7, 0))]
    for one in range(2):
        assert len({first[one], *(other[one] for other in others)}) == 6


def test_every_micro_batch_of_every_step_and_rank_draws_masks_of_its_own(build_run):
    """Of one and the same batch: were the masks the same, so would be the losses."""
    run = build_run("train.gradient_accumulation_steps=2", "train.lr=1e-30")
    batch = run.dataset[0][0]
    losses = []
    model_forward = run.engine.module.forward

    def noting(*args, **kwargs):
        output = model_forward(*args, **kwargs)
        losses.append(tuple(output.losses_T.tolist()))
        return output

    run.engine.module.forward = noting
    for step, rank in ((1, 0), (2, 0), (2, 1), (2, 1)):
        run.rank = rank
        train_step(run, [batch, batch], step)
    assert len(set(losses[:6])) == 6
    assert losses[6:] == losses[4:6]
