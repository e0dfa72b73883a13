"""FashionBERT on padded tensors, in operations that every exporter knows: what the ONNX graphs are traced from.

The modules hold the model's own weights and compute what `score` and `vectors` do on the packed axis. Nothing drops.

Shapes: B sequences, L tokens of the longest text, P patches, D patch feature, S = L + P rows of a sequence, H hidden,
N heads, E = H / N, or the numbers of a vector.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from fashionbert_fast.model.embeddings import IMAGE_SEGMENT, TEXT_SEGMENT
from fashionbert_fast.model.encoder import ACTIVATIONS, EncoderLayer
from fashionbert_fast.model.fashionbert import FashionBert
from fashionbert_fast.model.heads import joined
from fashionbert_fast.objectives.pretraining import FashionBertForPreTraining


class PaddedCore(nn.Module):
    """Text and patches to hidden states. ``attention_mask`` is 1 at tokens, 0 at padding, which may stand anywhere."""

    def __init__(self, model: FashionBert, segment: int = TEXT_SEGMENT) -> None:
        """``segment``: of the text's tokens, a title's or a query's."""
        super().__init__()
        self.text, self.patches, self.encoder = model.text_embeddings, model.patch_embeddings, model.encoder
        self.activation = ACTIVATIONS[model.config.hidden_act]
        self.segment, self.itc_head = segment, model.itc_head

    def vectors(
        self, hidden_BSH: torch.Tensor, live_BS: torch.Tensor, input_ids_BL: torch.Tensor | None = None,
        patch_features_BPD: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """What `FashionBert.pooled_vectors` gives, (B, E), of sequences with a text, with patches, or with both."""
        mean_BH = _mean(hidden_BSH, live_BS)
        if self.itc_head is None:
            return F.normalize(mean_BH, dim=1)
        tower_BE = torch.zeros_like(core_BE := self.itc_head.projection(mean_BH))
        if input_ids_BL is not None:
            words_BLH, live_BL = self.text.word(input_ids_BL), live_BS[:, : input_ids_BL.shape[1]]
            tower_BE = tower_BE + self.itc_head.word_tower(_mean(words_BLH, live_BL))
        if patch_features_BPD is not None:
            tower_BE = tower_BE + self.itc_head.patch_tower(patch_features_BPD.mean(1))
        return joined(core_BE, tower_BE)

    def embed_text(self, input_ids_BL: torch.Tensor, attention_mask_BL: torch.Tensor) -> torch.Tensor:
        """(B, L, H); padding has no place in its text, and what stands there is not read."""
        place_BL = (attention_mask_BL.cumsum(1) - 1).clamp(min=0)
        summed_BLH = self.text.word(input_ids_BL) + self.text.position(place_BL) + self._segment(self.segment)
        return self.text.norm(summed_BLH)

    def embed_patches(self, patch_features_BPD: torch.Tensor) -> torch.Tensor:
        """(B, P, H)."""
        projected_BPH = self.patches.projection(patch_features_BPD)
        return self.patches.norm(projected_BPH + self.patches.position.weight + self._segment(IMAGE_SEGMENT))

    def _segment(self, segment: int) -> torch.Tensor:
        return self.text.segment.weight[segment]

    def encode(self, hidden_BSH: torch.Tensor, live_BS: torch.Tensor | None) -> torch.Tensor:
        """Last hidden states (B, S, H); those of padding mean nothing. ``live_BS``: None where there is none."""
        for layer in self.encoder.layers:
            assert isinstance(layer, EncoderLayer)
            hidden_BSH = self._layer(layer, hidden_BSH, live_BS)
        return hidden_BSH

    def _layer(self, layer: EncoderLayer, hidden_BSH: torch.Tensor, live_BS: torch.Tensor | None) -> torch.Tensor:
        N, E = layer.heads, layer.qkv.in_features // layer.heads
        query_BNSE, key_BNSE, value_BNSE = (
            part_BSH.unflatten(2, (N, E)).transpose(1, 2) for part_BSH in layer.qkv(hidden_BSH).chunk(3, 2)
        )
        scores_BNSS = query_BNSE @ key_BNSE.transpose(2, 3) / math.sqrt(E)
        if live_BS is not None:
            scores_BNSS = scores_BNSS.masked_fill(~live_BS[:, None, None], torch.finfo(torch.float32).min)
        context_BSH = (scores_BNSS.softmax(3) @ value_BNSE).transpose(1, 2).flatten(2)
        hidden_BSH = layer.attention_norm(hidden_BSH + layer.attention_output(context_BSH))
        fed_BSH = layer.feed_forward_output(self.activation(layer.feed_forward(hidden_BSH)))
        return layer.feed_forward_norm(hidden_BSH + fed_BSH)

    def encode_pairs(
        self, input_ids_BL: torch.Tensor, attention_mask_BL: torch.Tensor, patch_features_BPD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states (B, S, H) of titles before their patches, and which rows are none of padding, (B, S)."""
        text_BLH = self.embed_text(input_ids_BL, attention_mask_BL)
        patches_BPH = self.embed_patches(patch_features_BPD)
        live_BL = attention_mask_BL.bool()
        live_BS = torch.cat([live_BL, live_BL.new_ones(patches_BPH.shape[:2])], 1)
        return self.encode(torch.cat([text_BLH, patches_BPH], 1), live_BS), live_BS


class PaddedScorer(PaddedCore):
    """`FashionBertForPreTraining.score`: (B,), the probability that title and image belong together."""

    def __init__(self, model: FashionBertForPreTraining) -> None:
        super().__init__(model)
        self.head = model.tia_head

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, patch_features: torch.Tensor
    ) -> torch.Tensor:
        hidden_BSH, live_BS = self.encode_pairs(input_ids, attention_mask, patch_features)
        L = input_ids.shape[1]
        first_BL = attention_mask * (attention_mask.cumsum(1) == 1)  # [CLS], whichever side is padded
        cls_BH = (hidden_BSH[:, :L] * first_BL[..., None]).sum(1)
        sides = _mean(hidden_BSH[:, :L], live_BS[:, :L]), hidden_BSH[:, L:].mean(1)
        return self.head(cls_BH, sides).softmax(1)[:, 1]


class PaddedTextVectors(PaddedCore):
    """`FashionBert.vectors` of texts alone, (B, E)."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        live_BL = attention_mask.bool()
        return self.vectors(self.encode(self.embed_text(input_ids, attention_mask), live_BL), live_BL, input_ids)


class PaddedImageVectors(PaddedCore):
    """`FashionBert.vectors` of images alone, (B, E)."""

    def forward(self, patch_features: torch.Tensor) -> torch.Tensor:
        hidden_BPH = self.encode(self.embed_patches(patch_features), None)
        live_BP = torch.ones_like(hidden_BPH[..., 0], dtype=torch.bool)
        return self.vectors(hidden_BPH, live_BP, patch_features_BPD=patch_features)


class PaddedPairVectors(PaddedCore):
    """`FashionBert.vectors` of titles with their images, (B, E)."""

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, patch_features: torch.Tensor
    ) -> torch.Tensor:
        encoded = self.encode_pairs(input_ids, attention_mask, patch_features)
        return self.vectors(*encoded, input_ids, patch_features)


def _mean(hidden_BSH: torch.Tensor, live_BS: torch.Tensor) -> torch.Tensor:
    """(B, H), over the live rows of each sequence."""
    live_BS1 = live_BS[..., None].to(hidden_BSH.dtype)
    return (hidden_BSH * live_BS1).sum(1) / live_BS1.sum(1)
