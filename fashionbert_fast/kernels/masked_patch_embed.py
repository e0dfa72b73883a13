"""masked_patch_embed: patch features to embeddings, masked patches counting as zeros.

Formula (EasyTransfer's imagebert embedding): LayerNorm(masked(features) @ weight.T + position + segment). The
projection has no bias, so a masked patch contributes exactly zero before position and segment.

Shapes: B pairs, P patches, D patch feature, H hidden.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fashionbert_fast.kernels._library import check_floating, check_same


def masked_patch_embed_reference(
    features_BPD, patch_mask_BP, weight_HD, position_PH, segment_H, ln_weight_H, ln_bias_H, *, eps=1e-12
):
    """The formula in plain PyTorch: what tests and benchmarks compare with."""
    masked_BPD = features_BPD.masked_fill(patch_mask_BP[..., None], 0)
    embedded_BPH = F.linear(masked_BPD, weight_HD) + position_PH + segment_H
    return F.layer_norm(embedded_BPH, (weight_HD.shape[0],), ln_weight_H, ln_bias_H, eps)


def masked_patch_embed(
    features_BPD: torch.Tensor,
    patch_mask_BP: torch.Tensor,
    weight_HD: torch.Tensor,
    position_PH: torch.Tensor,
    segment_H: torch.Tensor,
    ln_weight_H: torch.Tensor,
    ln_bias_H: torch.Tensor,
    *,
    eps: float = 1e-12,
) -> torch.Tensor:
    """Patch embeddings (B, P, H), in the dtype of ``features_BPD``.

    Args:
        features_BPD: (B, P, D) floating patch features.
        patch_mask_BP: (B, P) bool; True: this patch counts as zeros.
        weight_HD: (H, D) projection, no bias. position_PH: (P, H) patch positions. segment_H: (H,) the image segment.
        ln_weight_H, ln_bias_H: (H,) LayerNorm. eps: its epsilon.

    Raises:
        ValueError: naming the argument whose shape, dtype or device is wrong.
    """
    check_floating("features_BPD", features_BPD)
    if features_BPD.dim() != 3:
        raise ValueError(f"features_BPD must have shape (B, P, D), got {tuple(features_BPD.shape)}")
    B, P, D = features_BPD.shape
    H = weight_HD.shape[0]
    if patch_mask_BP.dtype != torch.bool or patch_mask_BP.device != features_BPD.device:
        raise ValueError(f"patch_mask_BP must be bool on {features_BPD.device}, got {patch_mask_BP.dtype}")
    expected = {
        "patch_mask_BP": (patch_mask_BP, (B, P)),
        "weight_HD": (weight_HD, (H, D)),
        "position_PH": (position_PH, (P, H)),
        "segment_H": (segment_H, (H,)),
        "ln_weight_H": (ln_weight_H, (H,)),
        "ln_bias_H": (ln_bias_H, (H,)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
        if name != "patch_mask_BP":
            check_same(name, tensor, "features_BPD", features_BPD)
    return masked_patch_embed_reference(
        features_BPD, patch_mask_BP, weight_HD, position_PH, segment_H, ln_weight_H, ln_bias_H, eps=eps
    )
