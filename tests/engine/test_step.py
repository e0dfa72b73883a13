"""One optimizer step's sums and means, without a second process: what other ranks give is made up."""

from __future__ import annotations

import pytest
import torch

from fashionbert_fast.data.batch import StepCounts
from fashionbert_fast.engine import step as step_module
from fashionbert_fast.objectives import weighting

NO_DROPOUT = ("model.hidden_dropout=0", "model.attention_dropout=0", "model.patch_dropout=0")


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_losses_are_means_over_two_ranks_and_so_is_their_gradient(monkeypatch, micro_batches):
    """Sums of this rank 1, 2, 3 and of the other 3, 2, 5; counts 8, 2, 4 of the whole step."""
    others_T = torch.tensor([3.0, 2.0, 5.0])
    monkeypatch.setattr(weighting, "all_reduce_sum", lambda tensor: tensor.add_(others_T))
    monkeypatch.setattr(weighting, "world_size", lambda: 2)
    sums_T = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    counts_T = torch.tensor([8.0, 2.0, 4.0])
    means_T = weighting.global_means(sums_T, counts_T, micro_batches)
    assert means_T.tolist() == [micro_batches * mean for mean in (0.5, 2.0, 2.0)]
    (gradient_T,) = torch.autograd.grad(means_T.sum(), sums_T)
    # the engine averages over two ranks, and over micro-batches: this is then one part in 8, 2 and 4
    assert (gradient_T / 2 / micro_batches).tolist() == [1 / 8, 1 / 2, 1 / 4]


def test_a_step_reports_the_mean_of_its_micro_batches(build_run):
    run = build_run(*NO_DROPOUT, "train.micro_batch_size=4", "train.gradient_accumulation_steps=3")
    micro_batches = run.dataset[0]
    with torch.no_grad():
        counts = StepCounts.of(micro_batches)
        reports = [run.engine.module(batch, counts[:3], 3).report for batch in micro_batches]
    losses, weights = [report.losses_T for report in reports], [report.weights_T for report in reports]
    report = step_module.train_step(run, micro_batches, 1)
    torch.testing.assert_close(report.losses_T, torch.stack(losses).mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(report.weights_T, torch.stack(weights).mean(0), rtol=1e-5, atol=1e-6)
    assert len({tuple(weights_T.tolist()) for weights_T in weights}) == 3  # each micro-batch has its own
    assert torch.equal(report.counts, counts)
    assert report.losses_T[1].item() == pytest.approx(0.69, abs=0.2)  # ln 2, guessing


def test_a_step_counts_what_all_ranks_have(build_run, monkeypatch):
    run = build_run(*NO_DROPOUT)
    micro_batches = run.dataset[0]
    monkeypatch.setattr(step_module, "all_reduce_sum", lambda tensor: tensor.mul_(2))  # as if another rank had as much
    report = step_module.train_step(run, micro_batches, 1)
    assert torch.equal(report.counts, 2 * StepCounts.of(micro_batches))
