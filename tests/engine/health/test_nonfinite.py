"""A step whose loss or gradient is not finite changes nothing and is counted; several in a row, or a weight, stop the
run by name, before anything of it is saved."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from engine.health import skipping_worker
from training import ENVIRONMENT

from fashionbert_fast.engine.checkpointing.resume import resume_run
from fashionbert_fast.engine.checkpointing.saver import save_checkpoint
from fashionbert_fast.engine.health.nonfinite import NonFiniteMonitor
from fashionbert_fast.engine.reporting.metrics import read_metrics
from fashionbert_fast.engine.step import gradient_norm, poison_nonfinite
from fashionbert_fast.engine.train import train
from fashionbert_fast.errors import TrainingStopped
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.run_directory import list_checkpoints, newest_valid

DIVERGING = ("train.lr=1e30", "train.warmup_ratio=0", "train.schedule=constant")


def _break(run, monkeypatch, step: int) -> int:
    """Let the features of the first product of ``step`` (from 1) be NaN; its row."""
    row, features = run.dataset.plan(0).image_rows[8 * (step - 1)], FeatureStore.features

    def broken(self, rows, views=None):
        values_nPD = features(self, rows, views).clone()
        values_nPD[np.asarray(rows) == row, 1, 3] = math.nan
        return values_nPD

    monkeypatch.setattr(FeatureStore, "features", broken)
    return row


def test_the_first_bad_step_its_task_and_its_samples_are_named(build_run, monkeypatch):
    """Found before the next save although no step is logged before the last."""
    run = build_run("train.log_every=100", "train.checkpoint_every=2", "train.max_skipped_steps=1")
    row = _break(run, monkeypatch, 3)
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
    assert (record["step"], record["skipped"], record["stopped"]) == (4, 1, message)


def test_a_bad_step_alone_is_passed_over_told_and_counted_on(build_run, monkeypatch, capfd):
    """Also by a run that is resumed: a checkpoint has the count."""
    options = ("train.log_every=100", "train.checkpoint_every=4", "validation.every=0")
    run = build_run(*options)
    _break(run, monkeypatch, 3)
    train(run, 0)
    counts = [(record["step"], record["skipped"]) for record in read_metrics(run.directory)]
    assert counts == [(4, 1), (8, 1)]
    assert "  1 skipped  " in capfd.readouterr().out
    resumed = build_run(*options)
    assert resume_run(resumed) == 8 and NonFiniteMonitor(resumed).num_skipped() == 1
    (run.directory / "metrics.jsonl").unlink()  # a log is only a log
    assert resume_run(resumed) == 8 and NonFiniteMonitor(resumed).num_skipped() == 1


@pytest.mark.parametrize("options", [("train.zero_stage=0",), ("train.zero_stage=3", "train.precision=bf16")])
def test_a_learning_rate_too_high_stops_at_the_first_bad_step(build_run, options):
    run = build_run("train.log_every=4", *DIVERGING, *options)
    message = r"step 2, the first of 3 in a row: loss of mlm, tia, mpm is not finite \(.*train\.lr"
    with pytest.raises(TrainingStopped, match=message) as stopped:
        train(run, 0)
    named = str(stopped.value).split("its 8 products are ")[1].split(", ...")[0].split(", ")
    text_rows = run.dataset.plan(0).text_rows[8:16]
    assert len(named) == 5
    assert set(named) <= {run.store.ids[row] for row in text_rows}
    assert list_checkpoints(run.directory) == []
    assert not (run.directory / "checkpoints").exists()


def _report(loss: float = 1.0, weight: float = 1.0, norm: float = 1.0) -> SimpleNamespace:
    """A step's, with these for the second task."""
    losses_T, weights_T = torch.tensor([1.0, loss, 1.0]), torch.tensor([1.0, weight, 1.0])
    return SimpleNamespace(losses_T=losses_T, weights_T=weights_T, own_T=losses_T, norm=torch.tensor(norm))


def test_only_a_row_that_is_too_long_stops_though_it_is_past_when_it_is_read(build_run):
    monitor = NonFiniteMonitor(build_run("train.max_skipped_steps=2"))
    bad = {2, 4, 5, 8}
    for step in range(1, 5):
        monitor.add(step, _report(norm=math.nan if step in bad else 1.0))
    assert monitor.has_unreported() and monitor.stop_reason() is None and monitor.num_skipped() == 2
    assert not monitor.has_unreported()
    for step in range(5, 9):
        monitor.add(step, _report(norm=math.inf if step in bad else 1.0))
    assert monitor.num_skipped() == 4
    message = "step 4, the first of 2 in a row: gradient norm is not finite (nan); its 8 products are "
    assert monitor.stop_reason().startswith(message)


def test_a_task_weight_is_named(build_run):
    monitor = NonFiniteMonitor(build_run("train.max_skipped_steps=1"))
    monitor.add(1, _report())
    assert not monitor.has_unreported()
    monitor.add(2, _report(weight=math.inf))
    monitor.add(3, _report(loss=math.nan))
    assert monitor.has_unreported()
    complaint = "step 2: task weight of tia is not finite (mlm 1, tia inf, mpm 1); its 8 products are "
    assert monitor.stop_reason().startswith(complaint)


def test_with_float16_a_gradient_is_counted_and_stops_nothing(build_run):
    """DeepSpeed passes a step of float16 over whose gradients overflow, and lowers its loss scale."""
    run = build_run("train.max_skipped_steps=1")
    run.config.train.precision = "fp16"
    monitor = NonFiniteMonitor(run)
    monitor.add(1, _report(norm=math.inf))
    assert monitor.num_skipped() == 1 and monitor.stop_reason() is None
    monitor.add(2, _report(loss=math.inf))
    assert monitor.num_skipped() == 2 and monitor.stop_reason().startswith("step 2: loss of tia")


def test_a_step_that_deepspeed_passed_over_has_a_norm_that_is_not_finite():
    """Its loss scaler's word counts, whatever norm it kept."""
    cpu = torch.device("cpu")

    def engine(norm, **optimizer):
        return SimpleNamespace(optimizer=SimpleNamespace(**optimizer), get_global_grad_norm=lambda: norm)

    assert gradient_norm(engine(2.0, overflow=True), cpu).isinf()
    assert gradient_norm(engine(2.0, overflow=False), cpu) == 2
    assert gradient_norm(engine(None), cpu) == 0
    assert gradient_norm(engine(torch.tensor(math.nan)), cpu).isnan()


def test_a_loss_that_is_not_finite_spoils_its_gradient_and_no_other_changes():
    for value in (1.5, -0.0, 2.0**127, math.inf, math.nan):
        x = torch.tensor(value, requires_grad=True)
        loss = poison_nonfinite(x)
        loss.backward()
        assert x.grad.isnan() if not math.isfinite(value) else (x.grad, loss.item()) == (1, value)


@pytest.mark.parametrize("others", [(), pytest.param(("deepspeed",), marks=pytest.mark.slow)])
def test_one_bad_number_of_one_rank_changes_nothing_on_any(store_path, tmp_path, others):
    """In a micro-batch, a gradient or a loss, at every stage and precision."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
               str(Path(skipping_worker.__file__)), str(store_path), str(tmp_path), *others]  # fmt: skip
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-6000:]


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
    assert errors[0].startswith("fashionbert pretrain: error: step 2, the first of 3 in a row: loss of")
    # torchrun tells of each process that failed, or that it ended itself because the other was first.
    codes = [line.split(":")[1].split()[0] for line in done.stderr.splitlines() if line.strip().startswith("exitcode")]
    assert "1" in codes and set(codes) <= {"1", "-15"}
    assert "fashionbert_fast/engine" not in done.stderr  # no traceback of ours
    assert not (tmp_path / "run" / "checkpoints").exists()
