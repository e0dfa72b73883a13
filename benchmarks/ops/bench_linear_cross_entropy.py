"""linear_cross_entropy, forward and backward, against plain PyTorch, torch.compile and its three bare products."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from benchmarks.measure import Row
from benchmarks.ops import liger
from benchmarks.ops.linear_loss import ROWS, LinearLoss, compare_linear_loss, dtypes
from fashionbert_fast.kernels import linear_cross_entropy
from fashionbert_fast.kernels.linear_cross_entropy import linear_cross_entropy_reference

H, V = 768, 30522
LOSS = LinearLoss(
    partial(linear_cross_entropy, reduction="sum"),
    partial(linear_cross_entropy_reference, reduction="sum"),
    plain=(1.0, 1.0),
    compiled=(1.0, 1.0),
    bare=(1 / 1.15, 1 / 1.15),
    memory=1.0,
)


def _inputs(count: int, dtype: torch.dtype, device: torch.device):
    generator = torch.Generator(device).manual_seed(count)
    hidden_MH = torch.randn(count, H, generator=generator, device=device).to(dtype)
    weight_VH = (torch.randn(V, H, generator=generator, device=device) * 0.02).to(dtype)
    bias_V = torch.zeros(V, device=device, dtype=dtype)
    return (hidden_MH, weight_VH, bias_V), torch.randint(V, (count,), generator=generator, device=device)


def rows(device: torch.device, quick: bool) -> list[Row]:
    """A row for each dtype, number of rows and peer, and one of memory; ``quick``: the fewest rows, fewer pairs."""
    result, loss = [], LOSS
    if liger.available(device):
        loss = replace(LOSS, others={"Liger fused linear CE": (liger.linear_cross_entropy, 1.0)})
    for name, dtype in dtypes(device).items():
        torch.compiler.reset()
        sizes = ROWS[device.type]
        for count in sizes[:1] if quick else sizes:
            parameters, *rest = _inputs(count, dtype, device)
            case = f"linear_cross_entropy M={count} H={H} V={V} {name} forward+backward"
            result += compare_linear_loss(loss, case, parameters, *rest, quick=quick)
    return result
