"""linear_patch_kld: the head of masked patch modelling and its loss in one, `patch_kld(hidden @ weight.T, target)`.

Formula: with logits z = hidden @ weight.T, p = softmax(target), q = softmax(z), the mean over the M rows of KL(p || q),
or their sum. Of the mean

    residual = q - p,    dloss/dhidden = residual @ weight / M,    dloss/dweight = residual.T @ hidden / M

Logits exist a block of rows at a time and in the dtype of ``hidden``; what is kept for the backward is the residual, in
their place. kernels/_linear_residual.py says how.

Shapes: M masked patches, H hidden, D patch feature, R rows of a feature matrix of which M are targets.
"""

from __future__ import annotations

import torch

from fashionbert_fast.kernels import _linear_residual
from fashionbert_fast.kernels._autocast import autocast
from fashionbert_fast.kernels._library import IGNORED, check_floating, check_same, reverse_mode_only
from fashionbert_fast.kernels._reduction import check_reduction, rows_that_count
from fashionbert_fast.kernels.patch_kld import check_target, patch_kld_reference, target_gradient


# Reference -----------------------------------------------------------------------------------------------------------
def linear_patch_kld_reference(
    hidden_MH: torch.Tensor,
    weight_DH: torch.Tensor,
    target: torch.Tensor,
    target_rows_M: torch.Tensor | None = None,
    *,
    reduction: str = "mean",
) -> torch.Tensor:
    """The formula in plain PyTorch: the matmul in the input's dtype, the loss in float32 (float64 for float64)."""
    if target_rows_M is None:
        return patch_kld_reference(hidden_MH @ weight_DH.T, target, reduction=reduction)
    kept_K = (target_rows_M != IGNORED).nonzero()[:, 0]
    return patch_kld_reference(hidden_MH[kept_K] @ weight_DH.T, target, target_rows_M[kept_K], reduction=reduction)


# Registration; the row kernels are csrc/cpu/linear_patch_kld.cpp and csrc/cuda/linear_patch_kld.cu -------------------
@torch.library.impl("fashionbert_fast::linear_patch_kld", "CompositeExplicitAutograd")
def _forward(hidden_MH, weight_DH, target, target_rows_M, save):
    def residual_(logits, rows):
        if target_rows_M is None:
            return torch.ops.fashionbert_fast.patch_kld_residual_.default(logits, target[rows], None)
        return torch.ops.fashionbert_fast.patch_kld_residual_.default(logits, target, target_rows_M[rows])

    divergences_M, residual_MD = _linear_residual.forward_blocks(hidden_MH, weight_DH, residual_, save)
    return divergences_M.sum() / max(hidden_MH.shape[0], 1), residual_MD


@torch.library.register_fake("fashionbert_fast::patch_kld_residual_")
def _(logits_MD, target, target_rows_M):
    dtype = torch.float64 if logits_MD.dtype == torch.float64 else torch.float32
    return logits_MD.new_empty((logits_MD.shape[0],), dtype=dtype)


@torch.library.register_fake("fashionbert_fast::linear_patch_kld")
def _(hidden_MH, weight_DH, target, target_rows_M, save):
    return _linear_residual.fake_forward(hidden_MH, weight_DH, save)


def _setup_context(ctx, inputs, output):
    hidden_MH, weight_DH, target, target_rows_M, _ = inputs
    wanted = target if ctx.needs_input_grad[2] else None
    ctx.save_for_backward(hidden_MH, weight_DH, wanted, target_rows_M, output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_loss, _grad_residual):
    if grad_loss is None:
        return None, None, None, None, None
    hidden_MH, weight_DH, target, target_rows_M, residual_MD = ctx.saved_tensors
    grad_hidden_MH = grad_weight_DH = grad_target = None
    if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
        scale = grad_loss / max(hidden_MH.shape[0], 1)
        grad_hidden_MH, grad_weight_DH, _ = _linear_residual.backward(scale, residual_MD, hidden_MH, weight_DH)
    if ctx.needs_input_grad[2]:
        grad_target = target_gradient(grad_loss, hidden_MH @ weight_DH.T, target, target_rows_M)
    return grad_hidden_MH, grad_weight_DH, grad_target, None, None


torch.library.register_autograd("fashionbert_fast::linear_patch_kld", _backward, setup_context=_setup_context)


# Public function -----------------------------------------------------------------------------------------------------
@reverse_mode_only
@autocast(keep=("target",))
def linear_patch_kld(
    hidden_MH: torch.Tensor,
    weight_DH: torch.Tensor,
    target: torch.Tensor,
    target_rows_M: torch.Tensor | None = None,
    *,
    reduction: str = "mean",
) -> torch.Tensor:
    """KL(softmax(target) || softmax(hidden @ weight.T)) over rows: a scalar, float32 (float64 for float64).

    Args:
        hidden_MH: (M, H) float32, bfloat16 or float16 hidden states, on CPU or CUDA; float64 on CPU.
        weight_DH: (D, H) projection without bias, of the same dtype.
        target: (M, D) raw features of any floating dtype; with ``target_rows_M`` any (R, D) matrix that holds them.
        target_rows_M: (M,) int64, the row of ``target`` that each row aims at, 0 <= row < R, or -100: that row counts
            for nothing. Out of range: RuntimeError on CPU, a NaN loss on CUDA.
        reduction: "mean" over the rows that count (0 where none does), or "sum".

    Raises:
        ValueError: naming the argument whose shape, dtype, device or value is wrong.

    Example:
        >>> features_RD = torch.rand(10, 6)  # of which rows 7 and 2 are predicted
        >>> loss = linear_patch_kld(torch.zeros(2, 4), torch.rand(6, 4), features_RD, torch.tensor([7, 2]))
        >>> loss.shape, bool(loss >= 0)
        (torch.Size([]), True)
    """
    check_reduction(reduction)
    check_floating("hidden_MH", hidden_MH)
    check_floating("target", target)
    if hidden_MH.dim() != 2:
        raise ValueError(f"hidden_MH must have shape (M, H), got {tuple(hidden_MH.shape)}")
    if hidden_MH.dtype == torch.float64 and hidden_MH.is_cuda:
        raise ValueError("hidden_MH is float64 on CUDA: float64 is for checking gradients on a CPU; use float32")
    if weight_DH.dim() != 2 or weight_DH.shape[1] != hidden_MH.shape[1]:
        raise ValueError(f"weight_DH must have shape (D, {hidden_MH.shape[1]}), got {tuple(weight_DH.shape)}")
    check_same("weight_DH", weight_DH, "hidden_MH", hidden_MH)
    shape = (hidden_MH.shape[0], weight_DH.shape[0])
    check_target(shape, hidden_MH.device, "hidden_MH", target, target_rows_M, names=("target", "target_rows_M"))
    if (hidden_MH.dtype == torch.float64) != (target.dtype == torch.float64):
        target = target.to(hidden_MH.dtype)  # the kernels mix the narrower dtypes only
    save = torch.is_grad_enabled() and (hidden_MH.requires_grad or weight_DH.requires_grad)
    # the sum / M, M being all rows
    loss = torch.ops.fashionbert_fast.linear_patch_kld(hidden_MH, weight_DH, target, target_rows_M, save)[0]
    if reduction == "sum":
        return loss * shape[0]
    return loss if target_rows_M is None else loss * (shape[0] / rows_that_count(target_rows_M, loss.dtype))
