"""The heads on the hidden states, each computed on the rows its task needs and no others.

Shapes: M masked tokens, K masked patches, B pairs, S sequences, H hidden, E numbers of a vector, V vocabulary, D patch
feature.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from fashionbert_fast.kernels import linear_cross_entropy, linear_patch_kld
from fashionbert_fast.model.config import FashionBertConfig
from fashionbert_fast.model.encoder import ACTIVATIONS

MOST_SCALE = 100.0  # CLIP's bound: a temperature of 0.01


class MaskedTokenHead(nn.Module):
    """BERT's masked language head: dense + activation + LayerNorm, then the word embedding as decoder, plus a bias."""

    def __init__(self, config: FashionBertConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.hidden_act]
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden_MH: torch.Tensor, word_VH: torch.Tensor, label_M: torch.Tensor) -> torch.Tensor:
        """Sum of the rows' cross-entropies, float32; the logits never exist in float32."""
        return linear_cross_entropy(self.transformed(hidden_MH), word_VH, self.bias, label_M, reduction="sum")

    def transformed(self, hidden_MH: torch.Tensor) -> torch.Tensor:
        """What the decoder multiplies, (M, H)."""
        return self.norm(self.activation(self.dense(hidden_MH)))

    def logits(self, hidden_MH: torch.Tensor, word_VH: torch.Tensor) -> torch.Tensor:
        """(M, V) scores of every word, for inference."""
        return F.linear(self.transformed(hidden_MH), word_VH, self.bias)


class MaskedPatchHead(nn.Module):
    """One bias-free matmul H -> D on the hidden states of the masked patches."""

    def __init__(self, config: FashionBertConfig) -> None:
        super().__init__()
        self.projection = nn.Linear(config.hidden_size, config.patch_feature_size, bias=False)

    def forward(self, hidden_KH: torch.Tensor, features_RD: torch.Tensor, target_row_K: torch.Tensor) -> torch.Tensor:
        """Sum of the rows' divergences from the raw features ``features_RD[target_row_K]``, float32."""
        # Under ZeRO-3 a weight is gathered by the module whose forward first reads it: this one.
        return linear_patch_kld(hidden_KH, self.projection.weight, features_RD, target_row_K, reduction="sum")


class AlignmentHead(nn.Module):
    """Text-image alignment (TIA), two classes, 1 = title and image match.

    ``cls``: BERT's pooler (dense + tanh) on [CLS], then a linear layer, as in the article. ``pooled``: before that
    layer, a dense layer and GELU on pooled [CLS], the means of the title's and of the photo's states, their product and
    their absolute difference.
    """

    def __init__(self, config: FashionBertConfig) -> None:
        super().__init__()
        H = config.hidden_size
        self.reads_sides = config.alignment_head == "pooled"
        self.pooler = nn.Linear(H, H)
        if self.reads_sides:
            self.dense = nn.Linear(5 * H, H)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(H, 2)

    def pooled(self, cls_BH: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.pooler(cls_BH))

    def forward(self, cls_BH: torch.Tensor, sides: tuple[torch.Tensor, torch.Tensor] | None = None) -> torch.Tensor:
        """(B, 2) logits. sides: means (B, H) of the title's and of the photo's states, where the head reads them."""
        pooled_BH = self.pooled(cls_BH)
        if self.reads_sides:
            assert sides is not None
            title_BH, photo_BH = (side_BH.to(pooled_BH.dtype) for side_BH in sides)
            both = [title_BH, photo_BH, title_BH * photo_BH, (title_BH - photo_BH).abs()]
            pooled_BH = F.gelu(self.dense(torch.cat([pooled_BH, *both], dim=1)))
        return self.classifier(self.dropout(pooled_BH))


class ContrastiveHead(nn.Module):
    """What the contrastive loss compares: a vector of length 1 of each sequence, and two learned scales.

    A vector has two halves of the same length. The core's is a projection of the mean of the last hidden states. The
    towers' is what two perceptrons make of the means of what went in: of the word embeddings, and of the unmasked
    patches' features. So a cosine is the mean of two, each of which has a loss of its own: added up to one vector
    before the loss, neither half would be good alone, and the whole worse than their mean.
    """

    def __init__(self, config: FashionBertConfig) -> None:
        super().__init__()
        H, D, half = config.hidden_size, config.patch_feature_size, config.contrastive_size // 2
        drop = config.contrastive_dropout_prob
        self.projection = nn.Linear(H, half)
        self.word_tower = nn.Sequential(
            nn.LayerNorm(H), nn.Linear(H, 8 * half), nn.GELU(), nn.Dropout(drop), nn.Linear(8 * half, half)
        )
        self.patch_tower = nn.Sequential(nn.Linear(D, 8 * half), nn.GELU(), nn.Dropout(drop), nn.Linear(8 * half, half))
        self.scale = LogitScale()

    def forward(
        self, mean_SH: torch.Tensor, word_SH: torch.Tensor, has_text_S: torch.Tensor, patch_ID: torch.Tensor,
        image_offsets_S1: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """(S, E) float32 of length 1.

        Args:
            mean_SH: of the last hidden states. word_SH: of the word embeddings, where ``has_text_S``. patch_ID: of the
                features of each photo of a sequence. image_offsets_S1: how many of those photos are of the sequences
                before each; a sequence has one or none.
        """
        dtype = self.projection.weight.dtype
        word_SE = self.word_tower(word_SH.to(dtype)).float() * has_text_S[:, None]
        patch_SE = segment_sums(self.patch_tower(patch_ID.to(dtype)), image_offsets_S1)
        return joined(self.projection(mean_SH.to(dtype)).float(), word_SE + patch_SE)


def segment_sums(rows_TH: torch.Tensor, offsets_S1: torch.Tensor) -> torch.Tensor:
    """(S, H) float32: the sum of each segment's rows, 0 of an empty one. Reads no tensor on the host, and adds up in
    the order of the rows on any device."""
    return torch.segment_reduce(rows_TH.float(), "sum", offsets=offsets_S1, axis=0, unsafe=True)


def joined(core_SE: torch.Tensor, tower_SE: torch.Tensor) -> torch.Tensor:
    """(S, 2 E), of length 1: the halves of a vector, each of the same length."""
    return torch.cat([F.normalize(core_SE, dim=1), F.normalize(tower_SE, dim=1)], dim=1) * 0.5**0.5


class LogitScale(nn.Module):
    """(2,) float32, what the cosines of either half are multiplied by: one over a learned temperature, at most
    `MOST_SCALE`."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.empty(2))
        self.begin_at(0.07)  # CLIP's

    @torch.no_grad()
    def begin_at(self, temperature: float) -> None:
        self.log_scale.fill_(-math.log(temperature))

    def forward(self) -> torch.Tensor:
        return self.log_scale.float().clamp(max=math.log(MOST_SCALE)).exp()
