"""Text and patch embeddings, and the packed axis they meet on.

Shapes: N title tokens, B pairs, P patches, D patch feature, I images, H hidden, T rows of the packed axis.
"""

from __future__ import annotations

import torch
from torch import nn

from fashionbert_fast.data.batch import PackedPairs
from fashionbert_fast.kernels import PackedRows, masked_patch_embed
from fashionbert_fast.model.config import FashionBertConfig

LEAST_DEVIATION = 0.01  # of a dimension, in units of the dimensions' root mean square
TEXT_SEGMENT, IMAGE_SEGMENT, QUERY_SEGMENT = 0, 1, 2  # the last only where type_vocab_size is 3 or more


def divisors(std_D: torch.Tensor) -> torch.Tensor:
    """What standardised features are divided by: their deviations, none below LEAST_DEVIATION."""
    typical = std_D.square().mean().sqrt()
    return std_D.clamp_min(LEAST_DEVIATION * typical) if typical > 0 else torch.ones_like(std_D)


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

    def forward(
        self, input_id_N: torch.Tensor, position_N: torch.Tensor, segment_N: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(N, H), of tokens at those places of their texts, which are titles where ``segment_N`` is None."""
        segment_NH = self.segment.weight[TEXT_SEGMENT] if segment_N is None else self.segment(segment_N)
        summed_NH = self.word(input_id_N) + self.position(position_N) + segment_NH
        return self.dropout(self.norm(summed_NH))


class PatchEmbeddings(nn.Module):
    """Dropout on the feature -> masked bias-free projection + position + image segment -> LayerNorm -> dropout."""

    def __init__(self, config: FashionBertConfig, site: int) -> None:
        super().__init__()
        H = config.hidden_size
        self.feature_dropout = config.patch_dropout_prob
        self.hidden_dropout = config.hidden_dropout_prob
        self.site = site
        self.projection = nn.Linear(config.patch_feature_size, H, bias=False)
        self.position = nn.Embedding(config.patches, H)
        self.norm = nn.LayerNorm(H, eps=config.layer_norm_eps)

    @torch.no_grad()
    def standardise(self, mean_D: torch.Tensor, std_D: torch.Tensor) -> None:
        """Fold x -> (x - mean) / std into the weights: of raw features the layer then makes what it made of
        standardised ones, since W ((x - mean) / std) = (W / std) x - (W / std) mean, a constant that goes to every
        position. float64 (D,) both; a deviation counts as no less than LEAST_DEVIATION, so that a dimension that never
        or hardly changes is not blown up.

        What is masked or dropped is the raw feature still. A masked patch is a raw zero as before, which is
        -mean / std and no longer the origin: it is told from an average patch, whose standardised features are 0.
        Only the beginning is standardised: the gradients that follow are of W / std, by raw features.
        """
        divisor_D = divisors(std_D)
        weight_HD = self.projection.weight.double() / divisor_D
        self.position.weight.copy_(self.position.weight.double() - weight_HD @ mean_D)
        self.projection.weight.copy_(weight_HD)

    # Under ZeRO-3 a weight is gathered by the module whose forward first reads it: nobody else may read these.
    def _weights(self, segment_H: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.projection.weight, self.position.weight, segment_H, self.norm.weight, self.norm.bias

    def forward(
        self, text_NH: torch.Tensor, pairs: PackedPairs, segment_H: torch.Tensor, seed: torch.Tensor | None
    ) -> torch.Tensor:
        """(T, H): the finished text and the patches of every pair, each on its rows of the packed axis."""
        drops = self.training and seed is not None
        return masked_patch_embed(
            pairs.features_IPD,
            pairs.patch_mask_BP,
            *self._weights(segment_H),
            eps=self.norm.eps,
            image_index_B=pairs.image_index_B,
            feature_dropout=self.feature_dropout if drops else 0.0,
            hidden_dropout=self.hidden_dropout if drops else 0.0,
            seed=seed,
            site=self.site,
            packed=PackedRows(text_NH, pairs.text_row_N, pairs.patch_row_B, pairs.rows),
        )

    def images(self, features_IPD: torch.Tensor, segment_H: torch.Tensor) -> torch.Tensor:
        """(I, P, H): images without masks or dropout, for inference."""
        unmasked_IP = torch.zeros(features_IPD.shape[:2], dtype=torch.bool, device=features_IPD.device)
        return masked_patch_embed(features_IPD, unmasked_IP, *self._weights(segment_H), eps=self.norm.eps)
