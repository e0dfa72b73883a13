"""The contrastive loss (ITC): the title and the photo of a product find each other among those of all ranks.

Titles alone and photos alone are sequences of the same encoder pass as the pairs; a vector of each is what
`FashionBert.vectors` gives: mean, projection, length 1. The loss is the symmetric InfoNCE of CLIP (Radford et al.,
Learning Transferable Visual Models From Natural Language Supervision, 2021) and ALBEF (Li et al., Align before Fuse,
2021): with cosines c and a learned scale s = 1 / temperature,

    1/2 [ -log softmax_j(s c(title_i, photo_j))_i  -  log softmax_j(s c(photo_i, title_j))_i ]

over the products j of the micro-batch on all ranks. Duplicates of product i are in no sum (`data.contrastive`). Either
half of a vector (`model.heads.ContrastiveHead`) has this loss; the whole is their mean.

Shapes: C slots of a rank's micro-batch, R ranks, G = R C, S sequences, E numbers of a vector.
"""

from __future__ import annotations

import math

import torch

from fashionbert_fast.data.batch import ContrastiveTargets
from fashionbert_fast.distributed import gather_rows


def softmax_loss(right_C: torch.Tensor, wrong_CG: torch.Tensor) -> torch.Tensor:
    """(C,) cross-entropies of the right one, whose logit is ``right_C``, among it and wrong ones, -inf where there is
    none."""
    return torch.cat([right_C[:, None], wrong_CG], dim=1).logsumexp(1) - right_C


def contrastive_sums(
    vectors_SE: torch.Tensor, logit_scale: torch.Tensor, targets: ContrastiveTargets
) -> torch.Tensor:  # fmt: skip
    """(2,) float32 of this rank's products: their sum of losses, and how many titles and photos are nearer to their own
    than to any wrong one, a half each.

    Args:
        vectors_SE: of the sequences, of which the last 2 C are titles alone and photos alone; each half is of length
            sqrt(1/2), or 0 of an empty slot. logit_scale: (2,), s of either half.
    """
    C = len(targets.live_C)
    title_CE, photo_CE = vectors_SE[len(vectors_SE) - 2 * C :].split(C)
    titles_GE, photos_GE = gather_rows(torch.cat([title_CE, photo_CE], dim=1)).chunk(2, dim=1)
    right_2C = 2 * (title_CE * photo_CE).unflatten(1, (2, -1)).sum(2).T
    sums_2, scale_21 = vectors_SE.new_zeros(2), logit_scale[:, None]
    for own_CE, others_GE in ((title_CE, photos_GE), (photo_CE, titles_GE)):
        halves = zip(own_CE.chunk(2, 1), others_GE.chunk(2, 1), strict=True)
        cosine_2CG = torch.stack([2 * own @ others.T for own, others in halves])
        found_C = right_2C.sum(0) > cosine_2CG.sum(0).masked_fill(~targets.wrong_CG, -math.inf).amax(1)
        wrong_2CG = (scale_21[..., None] * cosine_2CG).masked_fill(~targets.wrong_CG, -math.inf)
        losses_2C = softmax_loss((scale_21 * right_2C).flatten(), wrong_2CG.flatten(0, 1)).view(2, C)
        losses_C = losses_2C.mean(0) * targets.live_C
        sums_2 = sums_2 + torch.stack([losses_C.sum(), (found_C & targets.live_C).sum().float()]) / 2
    return sums_2
