"""The three heads on the joint hidden states, each computed on the rows its task needs and no others.

Shapes: M masked tokens, K masked patches, B pairs, H hidden, V vocabulary, D patch feature.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

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

    def forward(self, hidden_MH: torch.Tensor, word_VH: torch.Tensor) -> torch.Tensor:
        return F.linear(self.norm(self.activation(self.dense(hidden_MH))), word_VH, self.bias)


class MaskedPatchHead(nn.Module):
    """One bias-free product H -> D on the hidden states of the masked patches."""

    def __init__(self, config: FashionBertConfig) -> None:
        super().__init__()
        self.projection = nn.Linear(config.hidden_size, config.patch_feature_size, bias=False)

    def forward(self, hidden_KH: torch.Tensor) -> torch.Tensor:
        return self.projection(hidden_KH)


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
