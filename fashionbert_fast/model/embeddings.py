"""Text and patch embeddings.

Shapes: B pairs, L text tokens, P patches, D patch feature, H hidden.
"""

from __future__ import annotations

import torch
from torch import nn

from fashionbert_fast.kernels import masked_patch_embed
from fashionbert_fast.model.config import FashionBertConfig

TEXT_SEGMENT, IMAGE_SEGMENT = 0, 1


class TextEmbeddings(nn.Module):
    """BERT's: word + position + segment -> LayerNorm -> dropout. Its segment table also holds the image's row."""

    def __init__(self, config: FashionBertConfig) -> None:
        super().__init__()
        H = config.hidden_size
        self.word = nn.Embedding(config.vocab_size, H)
        self.position = nn.Embedding(config.max_position_embeddings, H)
        self.segment = nn.Embedding(config.type_vocab_size, H)
        self.norm = nn.LayerNorm(H, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids_BL: torch.Tensor) -> torch.Tensor:
        L = input_ids_BL.shape[1]
        summed_BLH = self.word(input_ids_BL) + self.position.weight[:L] + self.segment.weight[TEXT_SEGMENT]
        return self.dropout(self.norm(summed_BLH))


class PatchEmbeddings(nn.Module):
    """Dropout on the feature -> masked bias-free projection + position + image segment -> LayerNorm -> dropout."""

    def __init__(self, config: FashionBertConfig) -> None:
        super().__init__()
        H = config.hidden_size
        self.feature_dropout = nn.Dropout(config.patch_dropout_prob)
        self.projection = nn.Linear(config.patch_feature_size, H, bias=False)
        self.position = nn.Embedding(config.patches, H)
        self.norm = nn.LayerNorm(H, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, features_BPD, patch_mask_BP, segment_H) -> torch.Tensor:
        # Under ZeRO-3 a weight is gathered by the module whose forward first reads it: nobody else may read this one.
        embedded_BPH = masked_patch_embed(
            self.feature_dropout(features_BPD.to(segment_H.dtype)),
            patch_mask_BP,
            self.projection.weight,
            self.position.weight,
            segment_H,
            self.norm.weight,
            self.norm.bias,
            eps=self.norm.eps,
        )
        return self.dropout(embedded_BPH)
