"""dropout_add_layer_norm on a GPU: kernels/dropout_add_layer_norm.py has the formula.

Shapes: T tokens, H hidden.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fashionbert_fast.kernels._library import on_device_of_first
from fashionbert_fast.kernels.dropout import scale_of, threshold_of
from fashionbert_fast.kernels.triton.dropout import keep_tile

PROGRAMS = 256  # of the backward, at most: two a multiprocessor of the largest GPUs, whose sums are added up afterwards


# Kernels -------------------------------------------------------------------------------------------------------------
@triton.jit
def _factors(seed, site, row, threshold, scale, BLOCK: tl.constexpr):
    """What dropout multiplies row ``row`` by, (BLOCK,) float32."""
    keep = keep_tile(tl.load(seed), site, 0, row + tl.arange(0, 1), 0, threshold, 1, BLOCK // 128)
    return tl.reshape(keep, (BLOCK,)).to(tl.float32) * scale


@triton.jit
def _forward_kernel(
    x, residual, bias, weight, ln_bias, y, stats, seed, width, eps, site, threshold, scale,
    HAS_BIAS: tl.constexpr, DROPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    offsets = row.to(tl.int64) * width + columns
    s = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        s += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    if DROPS:
        s *= _factors(seed, site, row, threshold, scale, BLOCK)
    s += tl.load(residual + offsets, mask=inside, other=0.0).to(tl.float32)
    rough = tl.sum(s, axis=0) / width
    mean = rough + tl.sum(tl.where(inside, s - rough, 0.0), axis=0) / width  # without the rounding of the large sum
    centred = tl.where(inside, s - mean, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=0) / width + eps)
    scaled = centred * rstd * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    result = scaled + tl.load(ln_bias + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + offsets, result.to(y.dtype.element_ty), mask=inside)
    tl.store(stats + 2 * row.to(tl.int64), mean)
    tl.store(stats + 2 * row.to(tl.int64) + 1, rstd)


@triton.jit
def _backward_kernel(
    grad, x, residual, bias, weight, stats, grad_x, grad_residual, sums, seed, height, width, rows_each,
    site, threshold, scale, HAS_BIAS: tl.constexpr, DROPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    w = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    b = tl.zeros((BLOCK,), tl.float32)
    if HAS_BIAS:
        b = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    of_bias = tl.zeros((BLOCK,), tl.float32)
    of_weight = tl.zeros((BLOCK,), tl.float32)
    of_ln_bias = tl.zeros((BLOCK,), tl.float32)
    for row in range(program * rows_each, min((program + 1) * rows_each, height)):
        place = tl.cast(row, tl.int64)
        offsets = place * width + columns
        s = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32) + b
        if DROPS:
            factors = _factors(seed, site, row, threshold, scale, BLOCK)
            s *= factors
        s += tl.load(residual + offsets, mask=inside, other=0.0).to(tl.float32)
        rstd = tl.load(stats + 2 * place + 1)
        n = tl.where(inside, (s - tl.load(stats + 2 * place)) * rstd, 0.0)
        dy = tl.load(grad + offsets, mask=inside, other=0.0).to(tl.float32)
        g = dy * w
        ds = (g - tl.sum(g, axis=0) / width - n * (tl.sum(g * n, axis=0) / width)) * rstd
        tl.store(grad_residual + offsets, ds.to(grad_residual.dtype.element_ty), mask=inside)
        if DROPS:
            ds *= factors
            tl.store(grad_x + offsets, ds.to(grad_x.dtype.element_ty), mask=inside)
        of_bias += ds
        of_weight += dy * n
        of_ln_bias += dy
    to = sums + program.to(tl.int64) * 3 * width + columns
    tl.store(to, of_bias, mask=inside)
    tl.store(to + width, of_weight, mask=inside)
    tl.store(to + 2 * width, of_ln_bias, mask=inside)


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
            x_TH, residual_TH, bias_H, ln_weight_H, ln_bias_H, y_TH, stats_T2, seed, H, eps, site, threshold,
            scale_of(dropout), bias_H is not None, threshold > 0, block, num_warps=warps,
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
    rows_each = max(1, triton.cdiv(T, PROGRAMS))
    sums = x_TH.new_empty((triton.cdiv(T, rows_each), 3, H), dtype=torch.float32)
    if x_TH.numel() > 0:
        block, warps = _block(H)
        _backward_kernel[(sums.shape[0],)](
            grad_TH, x_TH, residual_TH, bias_H, ln_weight_H, stats_T2, grad_x_TH, grad_residual_TH, sums, seed, T, H,
            rows_each, site, threshold, scale_of(dropout), bias_H is not None, threshold > 0, block, num_warps=warps,
        )  # fmt: skip
    # three tensors, not views of one: an operator's outputs must not share memory
    grad_bias_H, grad_weight_H, grad_ln_bias_H = (total_H.to(x_TH.dtype, copy=True) for total_H in sums.sum(0))
    return (
        grad_x_TH,
        grad_residual_TH,
        grad_bias_H if bias_H is not None else x_TH.new_empty(0),
        grad_weight_H,
        grad_ln_bias_H,
    )
