"""dropout_add_layer_norm on a GPU: kernels/dropout_add_layer_norm.py has the formula.

Shapes: T tokens, H hidden.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fashionbert_fast.kernels._library import on_device_of_first
from fashionbert_fast.kernels.dropout import scale_of, threshold_of
from fashionbert_fast.kernels.triton.column_sums import column_sums
from fashionbert_fast.kernels.triton.dropout import keep_tile

# Of the backward: the loop over rows waits for memory, so a program has some rows on the way at once, and there are at
# most so many programs: three a multiprocessor of an H100, as many as its registers hold. Their sums are added up
# afterwards.
BACKWARD_ROWS, PROGRAMS = 2, 396


# Kernels -------------------------------------------------------------------------------------------------------------
@triton.jit
def _factors(seed, site, rows, threshold, scale, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """What dropout multiplies those rows by, (ROWS, BLOCK) float32."""
    return keep_tile(tl.load(seed), site, 0, rows, 0, threshold, ROWS, BLOCK // 128).to(tl.float32) * scale


@triton.jit
def _load_vector(vector, columns, inside):
    """(1, BLOCK) float32."""
    return tl.load(vector + columns, mask=inside, other=0.0).to(tl.float32)[None, :]


@triton.jit(do_not_specialize=["seed", "height", "site", "threshold"])
def _forward_kernel(
    x, residual, bias, weight, ln_bias, y, stats, seed, height, width, eps, site, threshold, scale,
    HAS_BIAS: tl.constexpr, DROPS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    inside, live = columns < width, rows < height
    mask = live[:, None] & inside[None, :]
    offsets = rows.to(tl.int64)[:, None] * width + columns[None, :]
    s = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        s += _load_vector(bias, columns, inside)
    if DROPS:
        s *= _factors(seed, site, rows, threshold, scale, ROWS, BLOCK)
    s += tl.load(residual + offsets, mask=mask, other=0.0).to(tl.float32)
    rough = tl.sum(s, 1) / width
    mean = rough + tl.sum(tl.where(mask, s - rough[:, None], 0.0), 1) / width  # without the rounding of the large sum
    centred = tl.where(mask, s - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / width + eps)
    result = centred * rstd[:, None] * _load_vector(weight, columns, inside) + _load_vector(ln_bias, columns, inside)
    tl.store(y + offsets, result.to(y.dtype.element_ty), mask=mask)
    tl.store(stats + 2 * rows.to(tl.int64), mean, mask=live)
    tl.store(stats + 2 * rows.to(tl.int64) + 1, rstd, mask=live)


@triton.jit(do_not_specialize=["seed", "height", "rows_each", "site", "threshold"])
def _backward_kernel(
    grad, x, residual, bias, weight, stats, grad_x, grad_residual, sums, seed, height, width, rows_each,
    site, threshold, scale, HAS_BIAS: tl.constexpr, DROPS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    w = _load_vector(weight, columns, inside)
    b = tl.zeros((1, BLOCK), tl.float32)
    if HAS_BIAS:
        b = _load_vector(bias, columns, inside)
    of_bias = tl.zeros((ROWS, BLOCK), tl.float32)
    of_weight = tl.zeros((ROWS, BLOCK), tl.float32)
    of_ln_bias = tl.zeros((ROWS, BLOCK), tl.float32)
    end = min((program + 1) * rows_each, height)
    for first in range(program * rows_each, end, ROWS):
        rows = first + tl.arange(0, ROWS)
        places, live = rows.to(tl.int64), rows < end
        mask = live[:, None] & inside[None, :]
        offsets = places[:, None] * width + columns[None, :]
        dy = tl.load(grad + offsets, mask=mask, other=0.0).to(tl.float32)
        s = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32) + b
        if DROPS:
            factors = _factors(seed, site, rows, threshold, scale, ROWS, BLOCK)
            s *= factors
        s += tl.load(residual + offsets, mask=mask, other=0.0).to(tl.float32)
        mean = tl.load(stats + 2 * places, mask=live, other=0.0)[:, None]
        rstd = tl.load(stats + 2 * places + 1, mask=live, other=0.0)[:, None]
        n = tl.where(mask, (s - mean) * rstd, 0.0)
        g = dy * w
        ds = (g - tl.sum(g, 1)[:, None] / width - n * (tl.sum(g * n, 1)[:, None] / width)) * rstd
        tl.store(grad_residual + offsets, ds.to(grad_residual.dtype.element_ty), mask=mask)
        if DROPS:
            ds *= factors
            tl.store(grad_x + offsets, ds.to(grad_x.dtype.element_ty), mask=mask)
        of_bias += ds
        of_weight += dy * n
        of_ln_bias += dy
    to = sums + program.to(tl.int64) * 3 * width + columns
    tl.store(to, tl.sum(of_bias, 0), mask=inside)
    tl.store(to + width, tl.sum(of_weight, 0), mask=inside)
    tl.store(to + 2 * width, tl.sum(of_ln_bias, 0), mask=inside)


# Launch --------------------------------------------------------------------------------------------------------------
def _block(width: int) -> tuple[int, int]:
    """Columns of a program and its warps: 8 elements a thread, up to 16 warps."""
    block = max(128, triton.next_power_of_2(width))
    return block, min(16, max(1, block // 256))


def _contiguous(*tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


@on_device_of_first
def launch_forward(x_TH, residual_TH, bias_H, ln_weight_H, ln_bias_H, eps, dropout, seed, site):
    """``(y_TH, stats_T2)`` by the Triton kernel."""
    x_TH, residual_TH, bias_H, ln_weight_H, ln_bias_H = (
        None if tensor is None else tensor.contiguous()
        for tensor in (x_TH, residual_TH, bias_H, ln_weight_H, ln_bias_H)
    )
    T, H = x_TH.shape
    y_TH, stats_T2 = torch.empty_like(x_TH), x_TH.new_empty((T, 2), dtype=torch.float32)
    if y_TH.numel() > 0:
        block, warps = _block(H)
        threshold = threshold_of(dropout)
        _forward_kernel[(T,)](
            x_TH, residual_TH, bias_H, ln_weight_H, ln_bias_H, y_TH, stats_T2, seed, T, H, eps, site, threshold,
            scale_of(dropout), bias_H is not None, threshold > 0, 1, block, num_warps=warps,
        )  # fmt: skip
    return y_TH, stats_T2


@on_device_of_first
def launch_backward(grad_TH, x_TH, residual_TH, bias_H, ln_weight_H, stats_T2, dropout, seed, site):
    """The gradients of x (empty where nothing drops: then residual's), residual, bias (empty without one), ln_weight
    and ln_bias by the Triton kernel."""
    grad_TH, x_TH, residual_TH, bias_H, ln_weight_H = _contiguous(grad_TH, x_TH, residual_TH, bias_H, ln_weight_H)
    T, H = x_TH.shape
    threshold = threshold_of(dropout)
    grad_residual_TH = torch.empty_like(x_TH)
    grad_x_TH = torch.empty_like(x_TH) if threshold else x_TH.new_empty(0)
    rows_each = BACKWARD_ROWS * max(1, triton.cdiv(T, BACKWARD_ROWS * PROGRAMS))
    sums = x_TH.new_empty((triton.cdiv(T, rows_each), 3, H), dtype=torch.float32)
    if x_TH.numel() > 0:
        block, warps = _block(H)
        _backward_kernel[(sums.shape[0],)](
            grad_TH, x_TH, residual_TH, bias_H, ln_weight_H, stats_T2, grad_x_TH, grad_residual_TH, sums, seed, T, H,
            rows_each, site, threshold, scale_of(dropout), bias_H is not None, threshold > 0, BACKWARD_ROWS, block,
            num_warps=warps,
        )  # fmt: skip
    grad_bias_H, grad_weight_H, grad_ln_bias_H = column_sums(sums, x_TH.dtype)
    return (
        grad_x_TH,
        grad_residual_TH,
        grad_bias_H if bias_H is not None else x_TH.new_empty(0),
        grad_weight_H,
        grad_ln_bias_H,
    )
