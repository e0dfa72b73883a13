"""bias_gelu: the feed-forward's activation with the bias of the matmul before it.

Formula, with Phi and phi the distribution and density of the normal law, exact (by erf) as in BERT:

    y = u Phi(u),  u = x + bias;    dy/du = Phi(u) + u phi(u)

The gradient of bias is the sum over rows of that of x, taken in the pass that writes it, in a fixed order. Only x is
kept for the backward.

Shapes: T tokens, F columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fashionbert_fast.kernels._autocast import autocast
from fashionbert_fast.kernels._library import check_floating, check_same, reverse_mode_only
from fashionbert_fast.kernels.triton import bias_gelu as on_gpu


# Reference -----------------------------------------------------------------------------------------------------------
def bias_gelu_reference(x_TF: torch.Tensor, bias_F: torch.Tensor | None = None) -> torch.Tensor:
    """The formula in plain PyTorch."""
    return F.gelu(x_TF if bias_F is None else x_TF + bias_F)


# Registration; the CPU's kernels are csrc/cpu/bias_gelu.cpp ----------------------------------------------------------
torch.library.impl("fashionbert_fast::bias_gelu", "CUDA")(on_gpu.launch_forward)
torch.library.impl("fashionbert_fast::bias_gelu_backward", "CUDA")(on_gpu.launch_backward)


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
@autocast()
def bias_gelu(x_TF: torch.Tensor, bias_F: torch.Tensor | None = None) -> torch.Tensor:
    """The exact GELU of x + bias, (T, F) in the dtype of ``x_TF``; computed in float32 (float64 for float64).

    Forward and backward each read every input once; the same bits on every run and any number of threads.

    Args:
        x_TF: (T, F) float32, bfloat16 or float16, on CPU or CUDA; float64 on CPU. Strided is copied.
        bias_F: (F,) of the same dtype and device, or None.

    Raises:
        ValueError: naming the argument whose shape, dtype or device is wrong.

    Example:
        >>> bias_gelu(torch.tensor([[-1.0, 0.0, 1.0]]), torch.zeros(3))
        tensor([[-0.1587,  0.0000,  0.8413]])
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
