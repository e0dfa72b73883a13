"""patch_kld: the loss of masked patch modelling.

Formula: mean over the M masked patches of KL(softmax(target) || softmax(logits)) over the D feature dimensions; the
target is the raw, unmasked feature. M = 0 gives 0.

Shapes: M masked patches, D patch feature.
"""

from __future__ import annotations

import torch

from fashionbert_fast.kernels._library import check_floating


def patch_kld_reference(logits_MD: torch.Tensor, target_MD: torch.Tensor) -> torch.Tensor:
    """The formula in plain PyTorch, in float32 (float64 for float64 input)."""
    dtype = torch.float64 if logits_MD.dtype == torch.float64 else torch.float32
    log_p_MD = torch.log_softmax(target_MD.to(dtype), dim=-1)
    log_q_MD = torch.log_softmax(logits_MD.to(dtype), dim=-1)
    return (log_p_MD.exp() * (log_p_MD - log_q_MD)).sum() / max(logits_MD.shape[0], 1)


def patch_kld(logits_MD: torch.Tensor, target_MD: torch.Tensor) -> torch.Tensor:
    """Mean over rows of KL(softmax(target) || softmax(logits)): a float32 scalar (float64 for float64 input).

    Args:
        logits_MD: (M, D) floating predictions. target_MD: (M, D) floating raw features; may be of another dtype.

    Raises:
        ValueError: naming the argument whose shape, dtype or device is wrong.
    """
    check_floating("logits_MD", logits_MD)
    check_floating("target_MD", target_MD)
    if logits_MD.dim() != 2:
        raise ValueError(f"logits_MD must have shape (M, D), got {tuple(logits_MD.shape)}")
    if target_MD.shape != logits_MD.shape:
        raise ValueError(f"target_MD must have shape {tuple(logits_MD.shape)}, got {tuple(target_MD.shape)}")
    if target_MD.device != logits_MD.device:
        raise ValueError(f"target_MD is on {target_MD.device} but logits_MD is on {logits_MD.device}: move one of them")
    return patch_kld_reference(logits_MD, target_MD)
