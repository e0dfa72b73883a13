"""The peers of the weighted whole step: the same losses, MGDA's gradients, and the rows of the suite."""

from __future__ import annotations

import copy

import pytest
import torch

from benchmarks.run import SUITES
from benchmarks.steps import bench_weighted_step
from benchmarks.steps.bench_weighted_step import HEADS, METHODS, task_losses, three_backwards, weighted_step
from benchmarks.steps.workload import fashion_gen_lengths, make_batches
from fashionbert_fast import FashionBertConfig, FashionBertForPreTraining


def _workload(dtype: torch.dtype, device: str = "cpu"):
    torch.manual_seed(0)
    config = FashionBertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, patches=4,
        patch_feature_size=24, hidden_dropout_prob=0, attention_probs_dropout_prob=0, patch_dropout_prob=0,
        initializer_range=0.2,
    )  # fmt: skip
    model = FashionBertForPreTraining(config).to(device, dtype)
    return model, make_batches(config, fashion_gen_lengths(8), 8, dtype=dtype)[0].to(device)


def _shared(model) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for name, p in model.named_parameters() if not name.startswith(HEADS)])


@pytest.mark.parametrize("method", METHODS)
def test_ours_and_three_backwards_agree_where_both_are_defined(method):
    ours, batch = _workload(torch.float64)
    theirs = copy.deepcopy(ours)
    torch.testing.assert_close(weighted_step(ours, batch, method), three_backwards(theirs, batch, method))
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert mine.grad.isfinite().all() and other.grad.isfinite().all(), name
        if name.startswith(HEADS):  # a head's own gradient is unweighted in both
            torch.testing.assert_close(mine.grad, other.grad, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_three_backwards_is_the_point_of_least_norm():
    model, batch = _workload(torch.float64)
    three_backwards(model, batch, "min_norm")
    least = _shared(model)
    tasks = []
    for i in range(3):
        model.zero_grad()
        task_losses(model, batch)[i].backward()
        for p in model.parameters():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        tasks.append(_shared(model))
    # The optimum of a quadratic over the simplex: no task gradient lies on the near side of it.
    for task in tasks:
        assert task @ least >= least @ least - 1e-5 * (task @ task)
    weights_T = torch.linalg.lstsq(torch.stack(tasks, 1), least[:, None]).solution.flatten()
    assert weights_T.min() > -1e-6
    assert weights_T.sum().item() == pytest.approx(1, abs=1e-5)


def test_rows_name_every_method_and_peer(monkeypatch):
    monkeypatch.setattr(bench_weighted_step, "workload", lambda device, quick: _workload(torch.bfloat16))
    rows = bench_weighted_step.rows(torch.device("cpu"), quick=True)
    found = [(method, row.peer) for row in rows for method in METHODS if f" {method} " in row.case]
    assert found == [(method, peer) for method in METHODS for peer in ("fixed weights", "three backwards")]
    assert {row.target for row in rows} == {1 / 1.05, 2.0}


def test_the_rows_are_in_both_suites():
    assert "weighted_step" in SUITES["ops"] and "weighted_step" in SUITES["solve"]
