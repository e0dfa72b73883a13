"""bias_gelu: the feed-forward's activation with the bias of the product before it.

Formula, with Phi and phi the distribution and density of the normal law, exact (by erf) as in BERT:

    y = u Phi(u),  u = x + bias;    dy/du = Phi(u) + u phi(u)

The gradient of bias is the sum over rows of that of x, taken in the pass that writes it, in a fixed order. Only x is
kept for the backward.

Shapes: T tokens, F columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from fashionbert_fast.kernels._library import check_floating, check_same, on_device_of_first, reverse_mode_only

ROWS, COLUMNS = 4, 256  # a tile
SUM_ROWS = 64  # a program of the backward; its sums of columns are added up in order afterwards


# Reference -----------------------------------------------------------------------------------------------------------
def bias_gelu_reference(x_TF: torch.Tensor, bias_F: torch.Tensor | None = None) -> torch.Tensor:
    """The formula in plain PyTorch."""
    return F.gelu(x_TF if bias_F is None else x_TF + bias_F)


# Triton --------------------------------------------------------------------------------------------------------------
@triton.jit
def _biased(x, bias, offsets, columns, inside, width, HAS_BIAS: tl.constexpr):
    """x + bias of a tile, float32."""
    u = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        u += tl.load(bias + columns, mask=columns < width, other=0.0).to(tl.float32)[None, :]
    return u


@triton.jit
def _forward_kernel(x, bias, y, height, width, HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (rows < height)[:, None] & (columns < width)[None, :]
    offsets = rows.to(tl.int64)[:, None] * width + columns[None, :]
    u = _biased(x, bias, offsets, columns, inside, width, HAS_BIAS)
    cdf = 0.5 * (1.0 + tl.erf(u * 0.7071067811865476))
    tl.store(y + offsets, (u * cdf).to(y.dtype.element_ty), mask=inside)


@triton.jit
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
    sums = x_TF.new_empty((triton.cdiv(T, SUM_ROWS), 0 if bias_F is None else F), dtype=torch.float32)
    if grad_x_TF.numel() > 0:
        grid = (sums.shape[0], triton.cdiv(F, COLUMNS))
        _backward_kernel[grid](
            grad_TF, x_TF, bias_F, grad_x_TF, sums, T, F, bias_F is not None, SUM_ROWS, ROWS, COLUMNS
        )
    return grad_x_TF, sums.sum(0).to(x_TF.dtype)


# Registration; the CPU's kernels are csrc/cpu/bias_gelu.cpp ----------------------------------------------------------
torch.library.impl("fashionbert_fast::bias_gelu", "CUDA")(launch_forward)
torch.library.impl("fashionbert_fast::bias_gelu_backward", "CUDA")(launch_backward)


@torch.library.register_fake("fashionbert_fast::bias_gelu")
def _(x_TF, bias_F):
    return x_TF.new_empty(x_TF.shape)


@torch.library.register_fake("fashionbert_fast::bias_gelu_backward")
def _(grad_TF, x_TF, bias_F):
    return x_TF.new_empty(x_TF.shape), x_TF.new_empty((0,) if bias_F is None else bias_F.shape)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad_TF):
    x_TF, bias_F = ctx.saved_tensors
    grad_x_TF, grad_bias_F = torch.ops.fashionbert_fast.bias_gelu_backward(grad_TF, x_TF, bias_F)
    return grad_x_TF, None if bias_F is None else grad_bias_F


torch.library.register_autograd("fashionbert_fast::bias_gelu", _backward, setup_context=_setup_context)


# Public function -----------------------------------------------------------------------------------------------------
@reverse_mode_only
def bias_gelu(x_TF: torch.Tensor, bias_F: torch.Tensor | None = None) -> torch.Tensor:
    """The exact GELU of x + bias, (T, F) in the dtype of ``x_TF``; computed in float32 (float64 for float64).

    Forward and backward each read every input once; the same bits on every run and any number of threads.

    Args:
        x_TF: (T, F) float32, bfloat16 or float16, on CPU or CUDA; float64 on CPU. Strided is copied.
        bias_F: (F,) of the same dtype and device, or None.

    Raises:
        ValueError: naming the argument whose shape, dtype or device is wrong.
    """
    check_floating("x_TF", x_TF)
    if x_TF.dim() != 2:
        raise ValueError(f"x_TF must have shape (T, F), got {tuple(x_TF.shape)}")
    if x_TF.dtype == torch.float64 and x_TF.is_cuda:
        raise ValueError("x_TF is float64 on CUDA: float64 is for checking gradients on a CPU; use float32")
    if bias_F is not None:
        check_floating("bias_F", bias_F)
        if bias_F.shape != x_TF.shape[1:]:
            raise ValueError(f"bias_F must have shape {tuple(x_TF.shape[1:])}, got {tuple(bias_F.shape)}")
        check_same("bias_F", bias_F, "x_TF", x_TF)
    return torch.ops.fashionbert_fast.bias_gelu(x_TF, bias_F)
