"""A title's stream and a photo's, which look into one another in their last layers: ViLBERT in small (Lu et al.,
ViLBERT: Pretraining Task-Agnostic Visiolinguistic Representations, NeurIPS 2019).

    title   the BERT's layers; the lower ones see the title alone and are frozen
    photo   [IMG], the mean patch, and the patches: linear + position -> LayerNorm -> layers of a narrower BERT
    block   before each of the last C layers, from both streams as they are

                title <- title + g CoAttention(title's queries, photo's keys and values)
                photo <- photo + g' CoAttention(photo's queries, title's keys and values)

    score   one logit of relu(P1 h_[CLS]) * relu(P2 h_[IMG]), as the release pools; binary cross-entropy on own and
            other pairs of a sub-category, drawn as FashionBERT's pre-training draws them

The gates g, 1 at first, are not the source's: at 0 the title's stream is the BERT itself, whose residuals a block must
leave as they are. So there is a LayerNorm before a block's attention rather than after it, and no feed-forward in it:
the stream's own layer follows at once.

Shapes: B pairs, K pairs to score, n rows asked for, L words, R = P + 1 regions, H and W width of the title's and the
photo's stream, N heads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fashionbert_fast.baselines.contrastive import TRAINED_LAYERS
from fashionbert_fast.baselines.fitting import Budget, Training, Validation
from fashionbert_fast.baselines.inputs import Standardise, State, TitleEncoder, patches, standardised_patches
from fashionbert_fast.baselines.pairs import PairBatches
from fashionbert_fast.baselines.system import Baseline
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.model.config import FashionBertConfig
from fashionbert_fast.model.encoder import EncoderLayer, Packing

WIDTH, HEADS, POOLED = 192, 4, 256


class CoAttention(nn.Module):
    """Queries of one stream, keys and values of the other."""

    def __init__(self, queries: int, keys: int) -> None:
        super().__init__()
        self.query_norm, self.key_norm = nn.LayerNorm(queries), nn.LayerNorm(keys)
        self.query, self.key_value = nn.Linear(queries, WIDTH), nn.Linear(keys, 2 * WIDTH)
        self.output = nn.Linear(WIDTH, queries)
        self.gate = nn.Parameter(torch.ones(()))

    def forward(self, from_BQH: torch.Tensor, to_BXW: torch.Tensor, live_BX: torch.Tensor | None) -> torch.Tensor:
        """(B, Q, H) to be added. live_BX: bool, False at padding; None: there is none."""
        query = self.query(self.query_norm(from_BQH)).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        key, value = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in self.key_value(self.key_norm(to_BXW)).chunk(2, dim=-1)
        )
        mask = None if live_BX is None else live_BX[:, None, None, :]
        read_BNQE = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.gate * self.output(read_BNQE.transpose(1, 2).flatten(2))


def run_layer(layer: EncoderLayer, hidden_BLH: torch.Tensor, live_BL: torch.Tensor | None) -> torch.Tensor:
    """A BERT layer on padded sequences, which it is given without their padding; 0 at padding. Nothing drops."""
    B, L = hidden_BLH.shape[:2]
    live_BL = hidden_BLH.new_ones(B, L, dtype=torch.bool) if live_BL is None else live_BL
    cu_seqlens_S1 = F.pad(live_BL.sum(1).cumsum(0), (1, 0)).int()
    hidden_TH = layer(hidden_BLH[live_BL], Packing(cu_seqlens_S1, L))
    return torch.zeros_like(hidden_BLH).masked_scatter(live_BL[..., None], hidden_TH)


class TwoStream(Baseline):
    """See above. States are what the streams hold before they look into one another."""

    name = "vilbert"
    pairs_at_once = 64

    def __init__(self, *, text: dict[str, Any], co_layers: int, patches: int, features: int) -> None:
        super().__init__(text=text, co_layers=co_layers, patches=patches, features=features)
        self.encoder, self.scale = TitleEncoder(**text), Standardise(features)
        H = self.encoder.width
        self.projection, self.norm = nn.Linear(features, WIDTH), nn.LayerNorm(WIDTH)
        self.position = nn.Parameter(torch.randn(patches + 1, WIDTH) * 0.02)
        config = FashionBertConfig(
            hidden_size=WIDTH, num_attention_heads=HEADS, intermediate_size=4 * WIDTH, num_hidden_layers=co_layers,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        self.photo_layers = nn.ModuleList(EncoderLayer(config, site=0) for _ in range(co_layers))
        self.to_photo = nn.ModuleList(CoAttention(H, WIDTH) for _ in range(co_layers))
        self.to_title = nn.ModuleList(CoAttention(WIDTH, H) for _ in range(co_layers))
        self.title_pooler, self.photo_pooler = nn.Linear(H, POOLED), nn.Linear(WIDTH, POOLED)
        self.output = nn.Linear(POOLED, 1)

    @property
    def text(self) -> TitleEncoder:
        return self.encoder

    @property
    def title_layers(self) -> list[EncoderLayer]:
        """Those with a block before them."""
        return list(self.encoder.bert.encoder.layers[-self.options["co_layers"] :])  # pyright: ignore[reportReturnType]

    def titles(self, rows: np.ndarray) -> State:
        return self.encoder.lower_words(rows, int(np.diff(self.encoder.titles.offsets).max()))

    def photos(self, rows: np.ndarray) -> State:
        scaled_nPD = self.scale(patches(self.store, rows).to(self.position))
        region_nRD = torch.cat([scaled_nPD.mean(1, keepdim=True), scaled_nPD], dim=1)
        return (self.norm(self.projection(region_nRD) + self.position),)

    def streams(
        self, title_BLH: torch.Tensor, live_BL: torch.Tensor, photo_BRW: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Last states of both, (B, L, H) and (B, R, W)."""
        layers = zip(self.title_layers, self.photo_layers, self.to_photo, self.to_title, strict=True)
        for title_layer, photo_layer, to_photo, to_title in layers:
            asked_BLH = to_photo(title_BLH, photo_BRW, None)
            asked_BRW = to_title(photo_BRW, title_BLH, live_BL)
            title_BLH = run_layer(title_layer, title_BLH + asked_BLH, live_BL)
            photo_BRW = run_layer(photo_layer, photo_BRW + asked_BRW, None)  # pyright: ignore[reportArgumentType]
        return title_BLH, photo_BRW

    def logits(self, titles: State, photos: State) -> torch.Tensor:
        """(B,) of pairs."""
        title_BLH, photo_BRW = self.streams(*titles, *photos)
        pooled_BE = self.title_pooler(title_BLH[:, 0]).relu() * self.photo_pooler(photo_BRW[:, 0]).relu()
        return self.output(pooled_BE).squeeze(1)

    def meet(self, titles: State, photos: State) -> torch.Tensor:
        return self.logits(titles, photos).double()

    @classmethod
    def fit(
        cls, store: FeatureStore, rows: np.ndarray, validation: Validation, *, seed: int, budget: Budget,
        core: str | Path,
    ) -> Self:  # fmt: skip
        torch.manual_seed(seed)
        encoder = TitleEncoder.from_bert(core, TRAINED_LAYERS)
        manifest = store.manifest
        system = cls(text=encoder.options, co_layers=encoder.trained, patches=manifest.patches,
                     features=manifest.feature_size)  # fmt: skip
        system.encoder, system.scale = encoder, standardised_patches(store, rows)
        system.open(store)
        encoder.hold(np.concatenate([rows, validation.rows]))
        batches = PairBatches(system, store, rows, seed)
        training = Training(system, batches.loss, rows, validation, seed, budget, epochs=8, batch_size=32)
        system.fitted = training.run()
        return system
