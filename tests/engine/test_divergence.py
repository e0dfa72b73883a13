"""A loss, a gradient or a weight that is not finite stops the run by name, before anything of it is saved."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from training import ENVIRONMENT

from fashionbert_fast.engine.checkpoint import save_checkpoint
from fashionbert_fast.engine.divergence import Watch
from fashionbert_fast.engine.loop import train
from fashionbert_fast.engine.metrics import read_metrics
from fashionbert_fast.errors import TrainingStopped
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.run_directory import list_checkpoints, newest_valid

DIVERGING = ("train.lr=1e30", "train.warmup_ratio=0", "train.schedule=constant")


def test_the_first_bad_step_its_task_and_its_samples_are_named(build_run, monkeypatch):
    """One product's features turn to NaN: found before the next save although no step is logged before the last."""
    run = build_run("train.log_every=100", "train.checkpoint_every=2")
    row = run.dataset.plan(0).image_rows[16]  # of step 3
    features = FeatureStore.features

    def broken(self, rows):
        values_nPD = features(self, rows).clone()
        values_nPD[np.asarray(rows) == row, 1, 3] = math.nan
        return values_nPD

    monkeypatch.setattr(FeatureStore, "features", broken)
    with pytest.raises(TrainingStopped) as stopped:
        train(run, 0)
    message = str(stopped.value)
    assert message.startswith("step 3: loss of ")
    assert f"1 of its 8 products have features in {run.store.path}" in message
    assert message.split("not finite: ")[1].split(";")[0] == run.store.ids[row]
    assert "prepare the store again" in message
    assert "\n" not in message
    assert [path.name for path in list_checkpoints(run.directory)] == ["step-00000002"]
    assert newest_valid(run.directory)[0].name == "step-00000002"
    (record,) = read_metrics(run.directory)
    assert (record["step"], record["stopped"]) == (4, message)


@pytest.mark.parametrize("options", [("train.zero_stage=0",), ("train.zero_stage=3", "train.precision=bf16")])
def test_a_learning_rate_too_high_stops_at_the_first_bad_step(build_run, options):
    run = build_run("train.log_every=4", *DIVERGING, *options)
    with pytest.raises(TrainingStopped, match=r"step 2: loss of mlm, tia, mpm is not finite .*train\.lr") as stopped:
        train(run, 0)
    named = str(stopped.value).split("its 8 products are ")[1].split(", ...")[0].split(", ")
    text_rows = run.dataset.plan(0).text_rows[8:16]
    assert len(named) == 5
    assert set(named) <= {run.store.ids[row] for row in text_rows}
    assert list_checkpoints(run.directory) == []
    assert not (run.directory / "checkpoints").exists()


def test_a_task_weight_is_named(build_run):
    run = build_run()
    watch = Watch(run)
    watch.add(1, torch.ones(3), torch.ones(3))
    assert not watch.found()
    watch.add(2, torch.ones(3), torch.tensor([1.0, math.inf, 1.0]))
    watch.add(3, torch.full((3,), math.nan), torch.ones(3))
    assert watch.found()
    complaint = watch.complaint({"step": 4, "grad_norm": 1.0})
    assert complaint.startswith("step 2: task weight of tia is not finite (mlm 1, tia inf, mpm 1); its 8 products are ")


@pytest.mark.parametrize("norm", [math.inf, math.nan])
def test_a_gradient_norm_is_named_but_for_float16(build_run, norm):
    """DeepSpeed passes a step of float16 over whose gradients overflow, and lowers its loss scale."""
    run = build_run()
    record = {"step": 4, "grad_norm": norm}
    assert Watch(run).complaint(record).startswith("step 4: gradient norm is not finite")
    run.config.train.precision = "fp16"
    assert Watch(run).complaint(record) is None


@pytest.mark.parametrize("options", [("train.zero_stage=0",), ("train.zero_stage=2", "train.precision=bf16")])
def test_weights_that_are_not_finite_are_never_written(build_run, options):
    from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param

    run = build_run(*options)
    args = run.tokenizer_dir, run.config.to_yaml(), run.config.train
    save_checkpoint(run.engine, run.directory, 1, *args)
    weight = run.engine.module.encoder.layers[1].qkv.weight
    broken = weight.detach().float().clone()
    broken[3, 5] = math.inf
    if safe_get_full_fp32_param(weight) is None:
        weight.data.copy_(broken)
    else:
        safe_set_full_fp32_param(weight, broken)
    with pytest.raises(TrainingStopped, match=r"^step 2: encoder\.layers\.1\.qkv\.weight .* not finite"):
        save_checkpoint(run.engine, run.directory, 2, *args)
    assert [path.name for path in (run.directory / "checkpoints").iterdir()] == ["step-00000001"]


def test_every_process_stops_with_status_1_and_one_line(store_path, tmp_path):
    (tmp_path / "run.yaml").write_text("train: {steps: 8, micro_batch_size: 4, log_every: 2}")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
               "fashionbert_fast", "pretrain", "--config", str(tmp_path / "run.yaml"), f"data.store={store_path}",
               f"train.output={tmp_path / 'run'}", "model.hidden_size=32", "model.heads=2", "model.layers=2",
               "model.intermediate_size=64", "model.vocab_size=300", *DIVERGING]  # fmt: skip
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    errors = [line for line in done.stderr.splitlines() if "error: " in line and line.startswith("fashionbert")]
    assert len(errors) == 1
    assert errors[0].startswith("fashionbert pretrain: error: step 2: loss of")
    # torchrun tells of each process that failed, or that it ended itself because the other was first.
    codes = [line.split(":")[1].split()[0] for line in done.stderr.splitlines() if line.strip().startswith("exitcode")]
    assert "1" in codes and set(codes) <= {"1", "-15"}
    assert "fashionbert_fast/engine" not in done.stderr  # no traceback of ours
    assert not (tmp_path / "run" / "checkpoints").exists()
