"""adaptive_loss: FashionBERT's closed-form task weights and the loss they give.

Formula (Gao et al., SIGIR 2020; with losses in place of gradients as in the released code), T tasks:

    g = softmax(L);  w_i = (1 / (alpha T - g_i^2)) / sum_j 1 / (alpha T - g_j^2);  loss = sum_i w_i L_i

which minimises 1/2 sum_i (alpha T - g_i^2) w_i^2 subject to sum w = 1. The released code does not stop the gradient
through w, and neither does this operator unless asked.

Shapes: T tasks.
"""

from __future__ import annotations

import torch

from fashionbert_fast.kernels._library import NATIVE_AUTOGRAD, check_floating, reverse_mode_only

MAX_TASKS = 8  # csrc/common/adaptive_loss.h


# Reference -----------------------------------------------------------------------------------------------------------
def closed_form_weights_reference(signals_T: torch.Tensor, alpha: float = 1.0) -> torch.Tensor:
    """The closed-form weights of ``signals_T`` (losses, or gradient norms), shape (T,), dtype kept."""
    g_T = torch.softmax(signals_T, dim=0)
    unnormalised_T = 1.0 / (alpha * signals_T.numel() - g_T**2)
    return unnormalised_T / unnormalised_T.sum()


def adaptive_loss_reference(
    losses_T: torch.Tensor, *, alpha: float = 1.0, detach_weights: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The formula in plain PyTorch: the specification tests and benchmarks compare with."""
    weights_T = closed_form_weights_reference(losses_T, alpha)
    if detach_weights:
        weights_T = weights_T.detach()
    return (weights_T * losses_T).sum(), weights_T


# Registration; the kernels are csrc/{cpu,cuda}/adaptive_loss.*, the backward csrc/autograd/adaptive_loss.cpp --------
@torch.library.register_fake("fashionbert_fast::adaptive_loss")
def _(losses_T, alpha, detach_weights):
    return losses_T.new_empty(()), losses_T.new_empty(losses_T.shape)


@torch.library.register_fake("fashionbert_fast::adaptive_loss_backward")
def _(grad_loss, grad_weights_T, losses_T, alpha, detach_weights):
    return losses_T.new_empty(losses_T.shape)


def _setup_context(ctx, inputs, output):
    losses_T, ctx.alpha, ctx.detach_weights = inputs
    ctx.save_for_backward(losses_T)
    ctx.set_materialize_grads(False)
    if ctx.detach_weights:
        ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad_loss, grad_weights_T):
    (losses_T,) = ctx.saved_tensors
    grad_losses_T = torch.ops.fashionbert_fast.adaptive_loss_backward(
        grad_loss, grad_weights_T, losses_T, ctx.alpha, ctx.detach_weights
    )
    return grad_losses_T, None, None


if not NATIVE_AUTOGRAD:
    torch.library.register_autograd("fashionbert_fast::adaptive_loss", _backward, setup_context=_setup_context)


# Public function -----------------------------------------------------------------------------------------------------
@reverse_mode_only
def adaptive_loss(
    losses_T: torch.Tensor, *, alpha: float = 1.0, detach_weights: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adaptive loss of T task losses: ``(loss, weights_T)``, one launch, no host synchronisation.

    Args:
        losses_T: (T,) float32, bfloat16, float16 or float64 task losses, 1 <= T <= 8, on CPU or CUDA.
        alpha: the regulariser of the closed form; alpha * T must exceed 1 so that every weight is positive.
        detach_weights: treat the weights as constants in the backward. The default, False, lets the gradient flow
            through them as the released code does.

    Returns:
        loss: scalar, dtype of ``losses_T``: sum_i w_i L_i.
        weights_T: (T,), dtype of ``losses_T``, summing to 1. Both are differentiable, the weights unless detached.

    Raises:
        ValueError: naming the argument, on a wrong shape or dtype or an alpha too small.

    Example:
        >>> loss, weights_T = adaptive_loss(torch.tensor([1.0, 1.0, 1.0]))
        >>> loss, weights_T
        (tensor(1.), tensor([0.3333, 0.3333, 0.3333]))
    """
    check_floating("losses_T", losses_T)
    if losses_T.dim() != 1 or not 1 <= losses_T.numel() <= MAX_TASKS:
        raise ValueError(f"losses_T must have shape (T,) with 1 <= T <= {MAX_TASKS}, got {tuple(losses_T.shape)}")
    if alpha * losses_T.numel() <= 1.0:
        raise ValueError(f"alpha must exceed 1 / T = {1 / losses_T.numel():.4g}, got {alpha}")
    return torch.ops.fashionbert_fast.adaptive_loss.default(losses_T, alpha, detach_weights)
