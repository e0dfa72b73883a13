"""The check before timing: honest kernels pass whatever their sums' order, wrong ones and other calculations do not."""

from __future__ import annotations

import importlib

import pytest
import torch

from benchmarks.measure import check_same, forward_backward, in_float64
from benchmarks.ops.linear_loss import LinearLoss, _exact
from fashionbert_fast.kernels.linear_patch_kld import linear_patch_kld_reference

TERMS = 16384
EPS = torch.finfo(torch.float32).eps


@pytest.fixture
def columns() -> torch.Tensor:
    return torch.randn(TERMS, 64, generator=torch.Generator().manual_seed(0))


def _one_by_one(columns: torch.Tensor) -> torch.Tensor:
    total = torch.zeros(columns.shape[1])
    for row in columns:
        total += row
    return total


def test_an_honest_sum_in_another_order_passes(columns):
    """One after another, against torch's blocks: twenty times its error, and neither is wrong."""
    exact, peer = columns.double().sum(0), columns.sum(0)
    mine = _one_by_one(columns)
    off, peers = ((x - exact).abs().max() / exact.abs().max() / EPS for x in (mine, peer))
    assert off > 16 and off > 10 * peers  # of float32's roundings: where the two were compared, it failed
    check_same([mine], [peer], [exact], TERMS)
    check_same([peer], [mine], [exact], TERMS)


def test_a_few_roundings_more_than_allowed_fail(columns):
    exact, peer = columns.double().sum(0), columns.sum(0)
    largest = exact.abs().max()
    allowed = 2 * (peer - exact).abs().max() / largest + EPS
    for terms in (0, TERMS):
        summed = terms**0.5 / 2 * EPS
        for beyond in (-3 * EPS, 3 * EPS):
            mine = exact.clone()
            mine[7] += (allowed + summed + beyond) * largest
            if beyond < 0:
                check_same([mine.float()], [peer], [exact], terms)
            else:
                with pytest.raises(AssertionError, match=r"result 0: error .* of the peer"):
                    check_same([mine.float()], [peer], [exact], terms)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_one_wrong_number_of_a_million_fails(dtype):
    exact = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    right, wrong = exact.to(dtype), exact.to(dtype)
    wrong[500, 500] += 2 * torch.finfo(dtype).eps * exact.abs().max()
    check_same([right], [right], [exact])
    with pytest.raises(AssertionError, match="error"):
        check_same([wrong], [right], [exact])


def test_numbers_below_the_normal_ones_are_not_held_to_more_than_they_have():
    exact = torch.tensor([1.49e-7, -3e-8], dtype=torch.float64)  # of float16's, whose least step is 6e-8
    check_same([torch.tensor([1.2e-7, 0.0], dtype=torch.float16)], [exact.half()], [exact])


@pytest.mark.parametrize("mine", [torch.full((3,), float("nan")), torch.ones(3, dtype=torch.bfloat16), torch.ones(1)])
def test_what_is_no_number_or_of_another_kind_fails(mine):
    exact = torch.ones(3, dtype=torch.float64)
    with pytest.raises(AssertionError, match="result 0"):
        check_same([mine], [exact.float()], [exact])


def test_a_peer_that_calculates_something_else_is_no_measure():
    exact = torch.ones(3, dtype=torch.float64)
    with pytest.raises(AssertionError, match="not the same"):
        check_same([exact.float()], [exact.float() * 1.1], [exact])


def test_the_chunks_of_a_float64_result_are_the_whole(monkeypatch):
    monkeypatch.setattr("benchmarks.ops.linear_loss.CHUNK", 3)
    generator = torch.Generator().manual_seed(0)
    hidden_MH, weight_DH, features_RD = (torch.randn(*s, generator=generator) for s in ((8, 5), (6, 5), (20, 6)))
    rows_M = torch.randint(20, (8,), generator=generator)

    def summed(*arguments):
        return linear_patch_kld_reference(*arguments, reduction="sum")

    loss = LinearLoss(summed, summed, *([(1.0, 1.0)] * 3), memory=1.0)
    whole = forward_backward(summed, in_float64((hidden_MH, weight_DH)), features_RD.double(), rows_M)()
    for part, all_at_once in zip(_exact(loss, (hidden_MH, weight_DH), (features_RD, rows_M)), whole, strict=True):
        torch.testing.assert_close(part, all_at_once)


@pytest.mark.parametrize(
    ("module", "sizes"),
    [("bias_gelu", "ROWS"), ("dropout_add_layer_norm", "ROWS"), ("masked_patch_embed", "ROWS"),
     ("packed_attention", "SEQUENCES"), ("patch_kld", "ROWS"), ("linear_patch_kld", "ROWS")],
)  # fmt: skip
def test_sizes_on_a_gpu_are_sixteen_times_those_on_a_cpu(module, sizes):
    of = vars(importlib.import_module(f"benchmarks.ops.bench_{module}"))[sizes]
    cpu, cuda = (size if isinstance(size, tuple) else (size,) for size in (of["cpu"], of["cuda"]))
    assert cuda == tuple(16 * size for size in cpu[: len(cuda)])
