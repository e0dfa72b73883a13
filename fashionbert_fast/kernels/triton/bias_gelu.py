"""bias_gelu on a GPU: kernels/bias_gelu.py has the formula.

Shapes: T tokens, F columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fashionbert_fast.kernels._library import on_device_of_first
from fashionbert_fast.kernels.triton.column_sums import column_sums

ROWS, COLUMNS = 4, 256  # a tile
SUM_ROWS = 64  # a program of the backward; its sums of columns are added up in order afterwards


# Kernels -------------------------------------------------------------------------------------------------------------
@triton.jit
def _biased(x, bias, offsets, columns, inside, width, HAS_BIAS: tl.constexpr):
    """x + bias of a tile, float32."""
    u = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        u += tl.load(bias + columns, mask=columns < width, other=0.0).to(tl.float32)[None, :]
    return u


@triton.jit(do_not_specialize=["height"])
def _forward_kernel(x, bias, y, height, width, HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (rows < height)[:, None] & (columns < width)[None, :]
    offsets = rows.to(tl.int64)[:, None] * width + columns[None, :]
    u = _biased(x, bias, offsets, columns, inside, width, HAS_BIAS)
    cdf = 0.5 * (1.0 + tl.erf(u * 0.7071067811865476))
    tl.store(y + offsets, (u * cdf).to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["height"])
def _backward_kernel(
    grad, x, bias, grad_x, sums, height, width,
    HAS_BIAS: tl.constexpr, SUM_ROWS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for first in range(0, SUM_ROWS, ROWS):
        rows = tl.program_id(0) * SUM_ROWS + first + tl.arange(0, ROWS)
        inside = (rows < height)[:, None] & (columns < width)[None, :]
        offsets = rows.to(tl.int64)[:, None] * width + columns[None, :]
        u = _biased(x, bias, offsets, columns, inside, width, HAS_BIAS)
        cdf = 0.5 * (1.0 + tl.erf(u * 0.7071067811865476))
        pdf = 0.3989422804014327 * tl.exp(-0.5 * u * u)
        gradient = tl.load(grad + offsets, mask=inside, other=0.0).to(tl.float32) * (cdf + u * pdf)
        tl.store(grad_x + offsets, gradient.to(grad_x.dtype.element_ty), mask=inside)
        total += tl.sum(gradient, axis=0)
    if HAS_BIAS:
        tl.store(sums + tl.program_id(0).to(tl.int64) * width + columns, total, mask=columns < width)


# Launch --------------------------------------------------------------------------------------------------------------
@on_device_of_first
def launch_forward(x_TF: torch.Tensor, bias_F: torch.Tensor | None) -> torch.Tensor:
    """``y_TF`` by the Triton kernel."""
    x_TF = x_TF.contiguous()
    bias_F = None if bias_F is None else bias_F.contiguous()
    y_TF = torch.empty_like(x_TF)
    T, F = x_TF.shape
    if y_TF.numel() > 0:
        grid = (triton.cdiv(T, ROWS), triton.cdiv(F, COLUMNS))
        _forward_kernel[grid](x_TF, bias_F, y_TF, T, F, bias_F is not None, ROWS, COLUMNS)
    return y_TF


@on_device_of_first
def launch_backward(
    grad_TF: torch.Tensor, x_TF: torch.Tensor, bias_F: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of x and bias by the Triton kernel; the latter is empty without a bias."""
    grad_TF, x_TF = grad_TF.contiguous(), x_TF.contiguous()
    bias_F = None if bias_F is None else bias_F.contiguous()
    T, F = x_TF.shape
    grad_x_TF = torch.empty_like(x_TF)
    sums = x_TF.new_empty((triton.cdiv(T, SUM_ROWS), 1, 0 if bias_F is None else F), dtype=torch.float32)
    if grad_x_TF.numel() > 0:
        grid = (sums.shape[0], triton.cdiv(F, COLUMNS))
        _backward_kernel[grid](
            grad_TF, x_TF, bias_F, grad_x_TF, sums, T, F, bias_F is not None, SUM_ROWS, ROWS, COLUMNS
        )
    return grad_x_TF, *column_sums(sums, x_TF.dtype)
