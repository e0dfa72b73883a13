"""The three heads on the joint hidden states, each computed on the rows its task needs and no others.

Shapes: M masked tokens, K masked patches, B pairs, H hidden, V vocabulary, D patch feature.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fashionbert_fast.kernels import linear_cross_entropy, linear_patch_kld
from fashionbert_fast.model.config import FashionBertConfig
from fashionbert_fast.model.encoder import ACTIVATIONS


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
    """Text-image alignment: BERT's pooler (dense + tanh on [CLS]), then two classes, 1 = title and image match."""

    def __init__(self, config: FashionBertConfig) -> None:
        super().__init__()
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, 2)

    def pooled(self, cls_BH: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.pooler(cls_BH))

    def forward(self, cls_BH: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.dropout(self.pooled(cls_BH)))
