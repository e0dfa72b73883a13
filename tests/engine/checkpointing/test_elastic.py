"""A run goes on under another number of processes and another ZeRO stage, with the samples it would have had."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from engine.checkpointing import elastic_worker
from engine.resume_worker import built, trained
from training import ENVIRONMENT

from fashionbert_fast.engine.checkpointing.resume import resume_run
from fashionbert_fast.errors import InputError

STAGES = (0, 1, 2, 3)


def test_one_process_two_and_one_again_at_every_stage(process_group, store_path, tmp_path):
    """Of one process at stage 0, 1, 2, 3 two go on at the same; of two, one goes on at the next stage."""
    store = str(store_path)
    for stage in STAGES:
        losses, weights = trained(
            built(store, tmp_path / f"{stage}", stage, "fp32", process_group, *elastic_worker.ONE), 0
        )
        torch.save({"losses": torch.stack(losses), "weights": weights}, tmp_path / "reference.pt")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
               str(Path(elastic_worker.__file__)), store, str(tmp_path)]  # fmt: skip
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-6000:]
    assert done.stdout.count("the checkpoint of step 1 is not written (rank 1): [Errno 5] Input/output error") == 1
    for stage in STAGES:
        reference = torch.load(tmp_path / f"two-{stage}.pt")
        run = built(
            store, tmp_path / f"two-{stage}", (stage + 1) % 4, "fp32", process_group, *elastic_worker.ONE
        )  # fmt: skip
        elastic_worker.check_resumed(run, reference)


def test_a_stage_changes_and_not_a_bit(process_group, store_path, tmp_path):
    """One process sums nothing, and with dropout its masks stay: only stage 3, whose clipping is DeepSpeed's, rounds
    otherwise, from the second step on."""
    losses, weights = trained(built(str(store_path), tmp_path / "run", 1, "fp32", process_group), 0)
    for stage in STAGES:
        shutil.copytree(tmp_path / "run", tmp_path / f"{stage}")
        run = built(str(store_path), tmp_path / f"{stage}", stage, "fp32", process_group)
        resumed_losses, resumed_weights = trained(run, resume_run(run))
        assert torch.equal(resumed_losses[0], losses[2]), stage
        torch.testing.assert_close(resumed_losses[1], losses[3], rtol=0, atol=elastic_worker.TOLERANCE)
        if stage < 3:
            assert torch.equal(resumed_losses[1], losses[3]), stage
            assert all(torch.equal(resumed_weights[name], weights[name]) for name in weights), stage


def test_another_global_batch_is_refused(process_group, store_path, tmp_path):
    run = built(str(store_path), tmp_path, 1, "fp32", process_group)
    trained(run, 0)
    for changed in ("train.micro_batch_size=2", "train.gradient_accumulation_steps=1"):
        run = built(str(store_path), tmp_path, 1, "fp32", process_group, changed)
        with pytest.raises(InputError, match=f"^{changed.partition('=')[0]}: was"):
            resume_run(run)
    run = built(str(store_path), tmp_path, 1, "fp32", process_group)
    run.world_size = 3
    with pytest.raises(InputError, match="a step takes 24 pairs on 3 processes, the run began on 1 with 8"):
        resume_run(run)
