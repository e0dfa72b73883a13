"""Selfie's objective for masked patches, in the place of the divergence: which of a photo's masked patches was here?

Trinh, Luong and Le, Selfie: Self-supervised Pretraining for Image Embedding, 2019. Row k of the masked patches has
scores u_kj = p_k . f_j / sqrt(D) of the features f_j of those masked in the same pair; p_k is the projected hidden
state. Its loss is the cross-entropy of its own, j = k. Patches that are as good as equal to it (plain background: a
cosine above `SAME`) are no wrong choices, or no model could tell.

Shapes: K masked patches, R rows of features, D patch feature.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from fashionbert_fast.objectives.contrastive import softmax_loss

SAME = 0.99


def patch_matching_loss(
    predicted_KD: torch.Tensor, features_RD: torch.Tensor, target_row_K: torch.Tensor, pair_K: torch.Tensor
) -> torch.Tensor:
    """Sum of the rows' losses, float32 (float64 for float64).

    Args:
        predicted_KD: projected hidden states. features_RD: raw features; row ``target_row_K[k]`` is the right one of k.
        pair_K: int64, equal for the masked patches of one pair.
    """
    dtype = torch.promote_types(predicted_KD.dtype, torch.float32)
    target_KD = features_RD.index_select(0, target_row_K).to(dtype)
    unit_KD = F.normalize(target_KD, dim=1)
    wrong_KK = (pair_K[:, None] == pair_K) & (unit_KD @ unit_KD.T <= SAME)
    score_KK = predicted_KD.to(dtype) @ target_KD.T / target_KD.shape[1] ** 0.5
    return softmax_loss(score_KK.diagonal(), score_KK.masked_fill(~wrong_KK, -math.inf)).sum()
