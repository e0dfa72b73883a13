"""linear_cross_entropy: the decoder of masked language modelling and its loss in one.

Formula: with logits z = hidden @ weight.T + bias and q = softmax(z), the sum over rows of -log q[label], or their mean.
Of the sum

    residual = q - onehot(label),    dloss/dhidden = residual @ weight,    dloss/dweight = residual.T @ hidden

Logits exist a block of rows at a time and in the dtype of ``hidden``; what is kept for the backward is the residual, in
their place. kernels/_linear_residual.py says how.

Shapes: M masked tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fashionbert_fast.kernels import _linear_residual
from fashionbert_fast.kernels._autocast import autocast
from fashionbert_fast.kernels._library import IGNORED, check_floating, check_same, reverse_mode_only
from fashionbert_fast.kernels._reduction import check_reduction, rows_that_count


# Reference -----------------------------------------------------------------------------------------------------------
def linear_cross_entropy_reference(
    hidden_MH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    labels_M: torch.Tensor,
    *,
    reduction: str = "mean",
) -> torch.Tensor:
    """The formula in plain PyTorch: the matmul in the input's dtype, the loss in float32 (float64 for float64)."""
    logits_MV = F.linear(hidden_MH, weight_VH, bias_V)
    wide = torch.promote_types(logits_MV.dtype, torch.float32)
    total = F.cross_entropy(logits_MV.to(wide), labels_M, reduction="sum", ignore_index=IGNORED)
    return total if reduction == "sum" else total / (labels_M != IGNORED).sum().clamp_min(1)


# Registration; the row kernels are csrc/cpu/linear_cross_entropy.cpp and csrc/cuda/linear_cross_entropy.cu -----------
@torch.library.impl("fashionbert_fast::linear_cross_entropy", "CompositeExplicitAutograd")
def _forward(hidden_MH, weight_VH, bias_V, labels_M, save):
    def residual_(logits, rows):
        return torch.ops.fashionbert_fast.cross_entropy_residual_.default(logits, bias_V, labels_M[rows])

    losses_M, residual_MV = _linear_residual.forward_blocks(hidden_MH, weight_VH, residual_, save)
    return losses_M.sum(), residual_MV


@torch.library.register_fake("fashionbert_fast::cross_entropy_residual_")
def _(logits_MV, bias_V, labels_M):
    dtype = torch.float64 if logits_MV.dtype == torch.float64 else torch.float32
    return logits_MV.new_empty((logits_MV.shape[0],), dtype=dtype)


@torch.library.register_fake("fashionbert_fast::linear_cross_entropy")
def _(hidden_MH, weight_VH, bias_V, labels_M, save):
    return _linear_residual.fake_forward(hidden_MH, weight_VH, save)


def _setup_context(ctx, inputs, output):
    hidden_MH, weight_VH, bias_V, _, _ = inputs
    ctx.has_bias = bias_V is not None
    ctx.save_for_backward(hidden_MH, weight_VH, output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_loss, _grad_residual):
    if grad_loss is None:
        return None, None, None, None, None
    hidden_MH, weight_VH, residual_MV = ctx.saved_tensors
    gradients = _linear_residual.backward(grad_loss, residual_MV, hidden_MH, weight_VH, ctx.has_bias)
    grad_hidden_MH, grad_weight_VH, grad_bias_V = gradients
    return grad_hidden_MH, grad_weight_VH, grad_bias_V if ctx.has_bias else None, None, None


torch.library.register_autograd("fashionbert_fast::linear_cross_entropy", _backward, setup_context=_setup_context)


# Public function -----------------------------------------------------------------------------------------------------
@reverse_mode_only
@autocast()
def linear_cross_entropy(
    hidden_MH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    labels_M: torch.Tensor,
    *,
    reduction: str = "mean",
) -> torch.Tensor:
    """Cross-entropy of hidden @ weight.T + bias over rows: a scalar, float32 (float64 for float64).

    Args:
        hidden_MH: (M, H) float32, bfloat16 or float16 hidden states, on CPU or CUDA; float64 on CPU.
        weight_VH: (V, H) decoder, bias_V: (V,) or None; of the same dtype.
        labels_M: (M,) int64 token ids, 0 <= id < V, or -100: that row counts for nothing. Out of range: RuntimeError on
            CPU, a NaN loss on CUDA.
        reduction: "mean" over the rows that count (0 where none does), or "sum".

    Raises:
        ValueError: naming the argument whose shape, dtype, device or value is wrong.

    Example:
        >>> linear_cross_entropy(torch.zeros(2, 4), torch.rand(8, 4), None, torch.tensor([3, -100]))  # ln 8
        tensor(2.0794)
    """
    check_reduction(reduction)
    check_floating("hidden_MH", hidden_MH)
    if hidden_MH.dim() != 2:
        raise ValueError(f"hidden_MH must have shape (M, H), got {tuple(hidden_MH.shape)}")
    if hidden_MH.dtype == torch.float64 and hidden_MH.is_cuda:
        raise ValueError("hidden_MH is float64 on CUDA: float64 is for checking gradients on a CPU; use float32")
    M, H = hidden_MH.shape
    if weight_VH.dim() != 2 or weight_VH.shape[1] != H or (M > 0 and weight_VH.shape[0] == 0):
        raise ValueError(f"weight_VH must have shape (V, {H}) with V > 0, got {tuple(weight_VH.shape)}")
    check_same("weight_VH", weight_VH, "hidden_MH", hidden_MH)
    if bias_V is not None:
        if bias_V.shape != weight_VH.shape[:1]:
            raise ValueError(f"bias_V must have shape ({weight_VH.shape[0]},), got {tuple(bias_V.shape)}")
        check_same("bias_V", bias_V, "hidden_MH", hidden_MH)
        bias_V = bias_V.contiguous()
    if labels_M.dtype != torch.int64 or labels_M.shape != (M,):
        raise ValueError(f"labels_M must be int64 of shape ({M},), got {labels_M.dtype} {tuple(labels_M.shape)}")
    if labels_M.device != hidden_MH.device:
        raise ValueError(f"labels_M is on {labels_M.device} but hidden_MH is on {hidden_MH.device}: move one of them")
    parameters = [hidden_MH, weight_VH] + ([] if bias_V is None else [bias_V])
    save = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in parameters)
    labels_M = labels_M.contiguous()
    total = torch.ops.fashionbert_fast.linear_cross_entropy(hidden_MH, weight_VH, bias_V, labels_M, save)[0]
    return total if reduction == "sum" else total / rows_that_count(labels_M, total.dtype)
