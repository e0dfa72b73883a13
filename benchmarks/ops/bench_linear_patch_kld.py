"""linear_patch_kld, forward and backward, against plain PyTorch, torch.compile of it and its three bare products."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.measure import Row
from benchmarks.ops.linear_loss import ROWS, LinearLoss, compare_linear_loss, dtypes
from fashionbert_fast.kernels import linear_patch_kld
from fashionbert_fast.kernels.linear_patch_kld import linear_patch_kld_reference

H, D = 768, 2048
LOSS = LinearLoss(
    partial(linear_patch_kld, reduction="sum"),
    partial(linear_patch_kld_reference, reduction="sum"),
    plain=(1.0, 1.5),
    compiled=(1.0, 1.2),
    bare=(1 / 1.20, 1 / 1.15),
    memory=4.0,
)


def _inputs(count: int, dtype: torch.dtype, device: torch.device):
    """Hidden states, projection, raw features of which one row in ten is a target, and those rows."""
    generator = torch.Generator(device).manual_seed(count)
    hidden_MH = torch.randn(count, H, generator=generator, device=device).to(dtype)
    weight_DH = (torch.randn(D, H, generator=generator, device=device) * 0.02).to(dtype)
    features_RD = torch.randn(10 * count, D, generator=generator, device=device).to(dtype)
    rows_M = torch.randperm(10 * count, generator=generator, device=device)[:count]
    return (hidden_MH, weight_DH), features_RD, rows_M


def rows(device: torch.device, quick: bool) -> list[Row]:
    """A row for each dtype, number of rows and peer, and one of memory; ``quick``: one number of rows, fewer pairs."""
    result = []
    for name, dtype in dtypes(device).items():
        torch.compiler.reset()
        sizes = ROWS[device.type][1:]
        for count in sizes[:1] if quick else sizes:
            parameters, *rest = _inputs(count, dtype, device)
            case = f"linear_patch_kld M={count} H={H} D={D} {name} forward+backward"
            result += compare_linear_loss(LOSS, case, parameters, *rest, quick=quick)
    return result
