"""dropout_add_layer_norm: what closes both halves of an encoder layer.

Formula, of each row:

    s = residual + dropout(x + bias);  n = (s - mean s) / sqrt(var s + eps);  y = n ln_weight + ln_bias

and backwards, g being the gradient of y times ln_weight:

    ds = (g - mean g - n mean(g n)) / sqrt(var s + eps);  dresidual = ds;  dx = ds where kept, scaled, else 0

The gradients of the three parameters are sums over rows, taken in the same pass, in a fixed order. Dropout is
kernels/dropout.py's: row t of x is row t of plane 0. The backward draws the mask again and forms s again from x and
residual, so nothing is stored but the mean and 1 / sqrt(var + eps) of each row: the residual is kept for the matmuls
it feeds, and x takes the place that s would.

Shapes: T tokens, H hidden.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fashionbert_fast.kernels._autocast import autocast
from fashionbert_fast.kernels._library import check_floating, check_same, reverse_mode_only
from fashionbert_fast.kernels.dropout import check_dropout, keep_reference, scale_of, threshold_of
from fashionbert_fast.kernels.triton import dropout_add_layer_norm as on_gpu

MAX_CUDA_WIDTH = 16384  # a row is one block


# Reference -----------------------------------------------------------------------------------------------------------
def dropout_add_layer_norm_reference(
    x_TH, residual_TH, ln_weight_H, ln_bias_H, *, bias_H=None, eps=1e-12, dropout=0.0, seed=None, site=0
):
    """The formula in plain PyTorch, with the operator's own mask."""
    biased_TH = x_TH if bias_H is None else x_TH + bias_H
    if dropout > 0:
        assert seed is not None
        T, H = x_TH.shape
        keep_TH = keep_reference(int(seed), site, torch.arange(T), H, dropout).to(x_TH.device)
        biased_TH = biased_TH * (keep_TH * scale_of(dropout)).to(x_TH.dtype)
    return F.layer_norm(residual_TH + biased_TH, ln_weight_H.shape, ln_weight_H, ln_bias_H, eps)


# Registration; the CPU's kernels are csrc/cpu/dropout_add_layer_norm.cpp ---------------------------------------------
torch.library.impl("fashionbert_fast::dropout_add_layer_norm", "CUDA")(on_gpu.launch_forward)
torch.library.impl("fashionbert_fast::dropout_add_layer_norm_backward", "CUDA")(on_gpu.launch_backward)


@torch.library.register_fake("fashionbert_fast::dropout_add_layer_norm")
def _(x_TH, residual_TH, bias_H, ln_weight_H, ln_bias_H, eps, dropout, seed, site):
    dtype = torch.float64 if x_TH.dtype == torch.float64 else torch.float32
    return x_TH.new_empty(x_TH.shape), x_TH.new_empty((x_TH.shape[0], 2), dtype=dtype)


@torch.library.register_fake("fashionbert_fast::dropout_add_layer_norm_backward")
def _(grad_TH, x_TH, residual_TH, bias_H, ln_weight_H, stats_T2, dropout, seed, site):
    T, H = x_TH.shape
    grad_x = x_TH.new_empty((T, H)) if threshold_of(dropout) else x_TH.new_empty((0,))
    grad_bias = x_TH.new_empty((0,) if bias_H is None else (H,))
    return grad_x, x_TH.new_empty((T, H)), grad_bias, x_TH.new_empty((H,)), x_TH.new_empty((H,))


def _setup_context(ctx, inputs, output):
    x_TH, residual_TH, bias_H, ln_weight_H, _ln_bias_H, _eps, ctx.dropout, seed, ctx.site = inputs
    ctx.save_for_backward(x_TH, residual_TH, bias_H, ln_weight_H, output[1], seed)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_TH, _grad_stats_T2):
    if grad_TH is None:
        return (None,) * 9
    x_TH, residual_TH, bias_H, ln_weight_H, stats_T2, seed = ctx.saved_tensors
    grad_x_TH, grad_residual_TH, grad_bias_H, grad_weight_H, grad_ln_bias_H = (
        torch.ops.fashionbert_fast.dropout_add_layer_norm_backward(
            grad_TH, x_TH, residual_TH, bias_H, ln_weight_H, stats_T2, ctx.dropout, seed, ctx.site
        )
    )
    if not threshold_of(ctx.dropout):
        grad_x_TH = grad_residual_TH  # as of any sum: autograd adds in place only to a tensor nobody else holds
    if bias_H is None:
        grad_bias_H = None
    return grad_x_TH, grad_residual_TH, grad_bias_H, grad_weight_H, grad_ln_bias_H, None, None, None, None


torch.library.register_autograd("fashionbert_fast::dropout_add_layer_norm", _backward, setup_context=_setup_context)


# Public function -----------------------------------------------------------------------------------------------------
@reverse_mode_only
@autocast(widest=True)
def dropout_add_layer_norm(
    x_TH: torch.Tensor,
    residual_TH: torch.Tensor,
    ln_weight_H: torch.Tensor,
    ln_bias_H: torch.Tensor,
    *,
    bias_H: torch.Tensor | None = None,
    eps: float = 1e-12,
    dropout: float = 0.0,
    seed: torch.Tensor | None = None,
    site: int = 0,
) -> torch.Tensor:
    """LayerNorm(residual + dropout(x + bias)): (T, H) in the dtype of ``x_TH``, computed in float32 (float64 for
    float64).

    Forward and backward each read every input once; the same bits on every run and any number of threads.

    Args:
        x_TH: (T, H) float32, bfloat16 or float16, on CPU or CUDA; float64 on CPU. Strided is copied. On CUDA
            H <= 16384.
        residual_TH: (T, H). ln_weight_H, ln_bias_H: (H,) LayerNorm. bias_H: (H,), or None. All of the dtype and on the
            device of ``x_TH``.
        eps: LayerNorm's, >= 0.
        dropout: probability of dropping, 0 to 1, rounded to a multiple of 1 / 65536.
        seed: (1,) int64 on the device of ``x_TH``, required where ``dropout`` > 0 (`dropout.draw_seed`).
        site: the place in the model that drops, 0 <= site < 2^31: places with one seed drop independently.

    Raises:
        ValueError: naming the argument whose shape, dtype, device or value is wrong.

    Example:
        >>> x_TH, residual_TH = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 1.0]])
        >>> dropout_add_layer_norm(x_TH, residual_TH, torch.ones(2), torch.zeros(2))
        tensor([[-1.,  1.]])
    """
    check_floating("x_TH", x_TH)
    if x_TH.dim() != 2:
        raise ValueError(f"x_TH must have shape (T, H), got {tuple(x_TH.shape)}")
    if x_TH.is_cuda and (x_TH.dtype == torch.float64 or x_TH.shape[1] > MAX_CUDA_WIDTH):
        raise ValueError(f"x_TH on CUDA must be float32 or narrower, with H <= {MAX_CUDA_WIDTH}")
    H = x_TH.shape[1:]
    _check("residual_TH", residual_TH, x_TH.shape, x_TH)
    _check("ln_weight_H", ln_weight_H, H, x_TH)
    _check("ln_bias_H", ln_bias_H, H, x_TH)
    if bias_H is not None:
        _check("bias_H", bias_H, H, x_TH)
    if not eps >= 0:
        raise ValueError(f"eps must be at least 0, got {eps}")
    check_dropout(seed, site, x_TH.device, dropout=dropout)
    return torch.ops.fashionbert_fast.dropout_add_layer_norm(
        x_TH, residual_TH, bias_H, ln_weight_H, ln_bias_H, eps, dropout, seed if dropout > 0 else None, site
    )[0]


def _check(name: str, tensor: torch.Tensor, shape: torch.Size, x_TH: torch.Tensor) -> None:
    check_floating(name, tensor)
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")
    check_same(name, tensor, "x_TH", x_TH)
