"""patch_kld: the loss of masked patch modelling.

Formula: mean over the M masked patches of KL(softmax(target) || softmax(logits)) over the D feature dimensions, or
their sum; the target is the raw, unmasked feature. M = 0 gives 0. Of the mean, with p = softmax(target) and
q = softmax(logits):

    dloss/dlogits = (q - p) / M,    dloss/dtarget = p (log p - log q - KL) / M

Shapes: M masked patches, D patch feature, R rows of a feature matrix of which M are targets.
"""

from __future__ import annotations

import torch

from fashionbert_fast.kernels._library import check_floating, reverse_mode_only
from fashionbert_fast.kernels._reduction import check_reduction


# Reference -----------------------------------------------------------------------------------------------------------
def patch_kld_reference(
    logits_MD: torch.Tensor,
    target_MD: torch.Tensor,
    target_rows_M: torch.Tensor | None = None,
    *,
    reduction: str = "mean",
) -> torch.Tensor:
    """The formula in plain PyTorch, in float32 (float64 for float64 input)."""
    dtype = torch.float64 if logits_MD.dtype == torch.float64 else torch.float32
    if target_rows_M is not None:
        target_MD = target_MD.index_select(0, target_rows_M)
    log_p_MD = torch.log_softmax(target_MD.to(dtype), dim=-1)
    log_q_MD = torch.log_softmax(logits_MD.to(dtype), dim=-1)
    total = (log_p_MD.exp() * (log_p_MD - log_q_MD)).sum()
    return total if reduction == "sum" else total / max(logits_MD.shape[0], 1)


# Registration; the kernels are csrc/cpu/patch_kld.cpp and csrc/cuda/patch_kld.cu -------------------------------------
@torch.library.register_fake("fashionbert_fast::patch_kld")
def _(logits_MD, target_RD, target_rows_M):
    dtype = torch.float64 if logits_MD.dtype == torch.float64 else torch.float32
    return logits_MD.new_empty((), dtype=dtype), logits_MD.new_empty((logits_MD.shape[0], 4), dtype=dtype)


@torch.library.register_fake("fashionbert_fast::patch_kld_backward")
def _(grad_loss, logits_MD, target_RD, target_rows_M, rows_M4):
    return logits_MD.new_empty(logits_MD.shape)


def _setup_context(ctx, inputs, output):
    logits_MD, target_RD, target_rows_M = inputs
    ctx.save_for_backward(logits_MD, target_RD, target_rows_M, output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_loss, _grad_rows_M4):
    if grad_loss is None:
        return None, None, None
    logits_MD, target_RD, target_rows_M, rows_M4 = ctx.saved_tensors
    grad_logits_MD = grad_target_RD = None
    if ctx.needs_input_grad[0]:
        grad_logits_MD = torch.ops.fashionbert_fast.patch_kld_backward(
            grad_loss, logits_MD, target_RD, target_rows_M, rows_M4
        )
    if ctx.needs_input_grad[1]:
        grad_target_RD = target_gradient(grad_loss, logits_MD, target_RD, target_rows_M)
    return grad_logits_MD, grad_target_RD, None


def target_gradient(grad_loss, logits_MD, target_RD, target_rows_M):
    """In plain PyTorch: the targets of training are stored features and ask for no gradient."""
    target_MD = target_RD if target_rows_M is None else target_RD.index_select(0, target_rows_M)
    log_p_MD = torch.log_softmax(target_MD.to(grad_loss.dtype), dim=-1)
    difference_MD = log_p_MD - torch.log_softmax(logits_MD.to(grad_loss.dtype), dim=-1)
    p_MD = log_p_MD.exp()
    kl_M1 = (p_MD * difference_MD).sum(dim=-1, keepdim=True)
    grad_MD = p_MD * (difference_MD - kl_M1) * (grad_loss / max(logits_MD.shape[0], 1))
    if target_rows_M is None:
        return grad_MD.to(target_RD.dtype)
    return grad_MD.new_zeros(target_RD.shape).index_add(0, target_rows_M, grad_MD).to(target_RD.dtype)


torch.library.register_autograd("fashionbert_fast::patch_kld", _backward, setup_context=_setup_context)


# Public function -----------------------------------------------------------------------------------------------------
@reverse_mode_only
def patch_kld(
    logits_MD: torch.Tensor,
    target_MD: torch.Tensor,
    target_rows_M: torch.Tensor | None = None,
    *,
    reduction: str = "mean",
) -> torch.Tensor:
    """KL(softmax(target) || softmax(logits)) over rows: a scalar, computed in float32 (float64 for float64).

    Forward and backward each read every input once; no host synchronisation, the same bits on every run. The
    gradient of the logits has their dtype.

    Args:
        logits_MD: (M, D) float32, bfloat16 or float16 predictions, on CPU or CUDA; float64 on CPU.
        target_MD: (M, D) raw features, of the same or another floating dtype. With ``target_rows_M`` any (R, D) matrix
            that holds them: the targets are then read where they lie instead of being copied out.
        target_rows_M: (M,) int64, the row of ``target_MD`` that is the target of each row of logits, 0 <= row < R. A
            row out of range is a RuntimeError on CPU and a NaN loss on CUDA, where nothing could raise in time.
        reduction: "mean" (`torch.nn.functional.kl_div` calls it "batchmean"; 0 of no rows), or "sum".

    Raises:
        ValueError: naming the argument whose shape, dtype, device or value is wrong.

    Example:
        >>> patch_kld(torch.zeros(1, 2), torch.tensor([[0.0, torch.log(torch.tensor(3.0))]]))
        tensor(0.1308)
    """
    check_reduction(reduction)
    check_floating("logits_MD", logits_MD)
    check_floating("target_MD", target_MD)
    if logits_MD.dim() != 2:
        raise ValueError(f"logits_MD must have shape (M, D), got {tuple(logits_MD.shape)}")
    if logits_MD.dtype == torch.float64 and logits_MD.is_cuda:
        raise ValueError("logits_MD is float64 on CUDA: float64 is for checking gradients on a CPU; use float32")
    check_target(logits_MD.shape, logits_MD.device, "logits_MD", target_MD, target_rows_M)
    if (logits_MD.dtype == torch.float64) != (target_MD.dtype == torch.float64):
        target_MD = target_MD.to(logits_MD.dtype)  # the kernels mix the narrower dtypes only
    loss = torch.ops.fashionbert_fast.patch_kld(logits_MD, target_MD, target_rows_M)[0]
    return loss * logits_MD.shape[0] if reduction == "sum" else loss


def check_target(shape, device, of, target, rows_M, names=("target_MD", "target_rows_M")) -> None:
    """ValueError naming the argument unless target and rows suit (M, D) logits made from the argument named ``of``."""
    (M, D), (target_name, rows_name) = shape, names
    if rows_M is None:
        if tuple(target.shape) != (M, D):
            raise ValueError(f"{target_name} must have shape ({M}, {D}), got {tuple(target.shape)}")
    else:
        if target.dim() != 2 or target.shape[1] != D:
            raise ValueError(f"{target_name} must have shape (R, {D}), got {tuple(target.shape)}")
        if rows_M.dtype != torch.int64 or rows_M.shape != (M,):
            raise ValueError(f"{rows_name} must be int64 of shape ({M},), got {rows_M.dtype} {tuple(rows_M.shape)}")
        if M > 0 and target.shape[0] == 0:
            raise ValueError(f"{target_name} has no rows for {rows_name} to point at")
    for name, tensor in ((target_name, target), (rows_name, rows_M)):
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device} but {of} is on {device}: move one of them")
