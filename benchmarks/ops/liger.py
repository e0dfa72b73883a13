"""Peers from Liger-Kernel (its kernels are Triton: CUDA only), where it is installed; None elsewhere."""

from __future__ import annotations

import importlib.util

import torch


def available(device: torch.device) -> bool:
    return device.type == "cuda" and importlib.util.find_spec("liger_kernel") is not None


def patch_kld(logits_MD: torch.Tensor, target: torch.Tensor, target_rows_M: torch.Tensor | None) -> torch.Tensor:
    """Liger's KL divergence takes log-probabilities and probabilities: the softmaxes are PyTorch's."""
    from liger_kernel.transformers import LigerKLDIVLoss

    target_MD = target if target_rows_M is None else target.index_select(0, target_rows_M)
    log_q_MD = torch.log_softmax(logits_MD.float(), dim=-1)
    return LigerKLDIVLoss(reduction="batchmean")(log_q_MD, torch.softmax(target_MD.float(), dim=-1))


def linear_cross_entropy(
    hidden_MH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor, labels_M: torch.Tensor
) -> torch.Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss(reduction="sum")(weight_VH, hidden_MH, labels_M, bias_V)
