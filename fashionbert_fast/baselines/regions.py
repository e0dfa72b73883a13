"""One stream over words and regions: VL-BERT in small (Su et al., VL-BERT: Pre-training of Generic Visual-Linguistic
Representations, ICLR 2020).

    regions   the whole photo, and up to 8 clusters of its own patches, in place of a detector's boxes: k-means over
              features of length 1 and place; a cluster's feature is the mean of its patches, its box what they span
    word      word + position + segment + map of the whole photo's feature -> LayerNorm
    region    map of its feature + map of sines and cosines of its box + segment -> LayerNorm
    score     one logit of the pooled [CLS] of a BERT over both; binary cross-entropy as in `two_stream`

With the patches as regions, positions for boxes and no photo in the words it is FashionBERT's core.

Shapes: B pairs, n photos, P patches, D patch feature, C clusters, R = C + 1 regions, L words, H hidden.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from fashionbert_fast.baselines.fitting import Budget, Training, Validation
from fashionbert_fast.baselines.inputs import Held, Standardise, State, TitleEncoder, patches, standardised_patches
from fashionbert_fast.baselines.pairs import PairBatches
from fashionbert_fast.baselines.system import Baseline
from fashionbert_fast.baselines.two_stream import run_layer
from fashionbert_fast.data.pairs import collate_texts
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.model.embeddings import IMAGE_SEGMENT, TEXT_SEGMENT

CLUSTERS, ROUNDS = 8, 10
PLACE = 1.0  # how far the corners of a photo are apart beside features of length 1, along each side
FREQUENCIES = 8  # of sines and cosines of each edge of a box


def boxes_of_grid(grid: int) -> torch.Tensor:
    """(P, 4): left, top, right and bottom of each patch, from 0 to 1."""
    top, left = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    return torch.stack([left, top, left + 1, top + 1], dim=-1).reshape(-1, 4) / grid


def cluster(features_nPD: torch.Tensor, grid: int) -> torch.Tensor:
    """Which cluster each patch is of, int64 (n, P): Lloyd's rounds, from the patch furthest from the mean and then ever
    the one furthest from those chosen. A cluster may lose all of its patches."""
    P = features_nPD.shape[1]
    centre_P2 = boxes_of_grid(grid).unflatten(1, (2, 2)).mean(1).to(features_nPD)
    unit_nPD = nn.functional.normalize(features_nPD, dim=-1)
    point_nPF = torch.cat([unit_nPD, PLACE * centre_P2.expand(len(unit_nPD), P, 2)], dim=-1)
    count = min(CLUSTERS, P)
    mean_nCF = point_nPF.mean(1, keepdim=True)
    for chosen in range(count):
        furthest_n = torch.cdist(point_nPF, mean_nCF).amin(-1).argmax(-1)
        new_n1F = point_nPF[torch.arange(len(furthest_n)), furthest_n][:, None]
        mean_nCF = torch.cat([mean_nCF, new_n1F], dim=1) if chosen else new_n1F
    for _ in range(ROUNDS):
        of_nP = torch.cdist(point_nPF, mean_nCF).argmin(-1)
        member_nCP = nn.functional.one_hot(of_nP, count).mT.to(point_nPF)
        size_nC1 = member_nCP.sum(-1, keepdim=True)
        mean_nCF = torch.where(size_nC1 > 0, member_nCP @ point_nPF / size_nC1.clamp(min=1), mean_nCF)
    return of_nP


def regions(features_nPD: torch.Tensor, grid: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features (n, R, D), boxes (n, R, 4) and which there are, bool (n, R): the whole photo, then the clusters."""
    of_nP, box_P4 = cluster(features_nPD, grid), boxes_of_grid(grid).to(features_nPD)
    member_nCP = nn.functional.one_hot(of_nP, min(CLUSTERS, len(box_P4))).mT.bool()
    member_nRP = torch.cat([torch.ones_like(member_nCP[:, :1]), member_nCP], dim=1)
    live_nR = member_nRP.any(-1)
    mean_nRD = member_nRP.to(features_nPD) @ features_nPD / member_nRP.sum(-1, keepdim=True).clamp(min=1)
    low_nR2 = box_P4[:, :2].expand(*member_nRP.shape, 2).masked_fill(~member_nRP[..., None], 1.0).amin(2)
    high_nR2 = box_P4[:, 2:].expand(*member_nRP.shape, 2).masked_fill(~member_nRP[..., None], 0.0).amax(2)
    return mean_nRD, torch.cat([low_nR2, high_nR2], dim=-1), live_nR


def box_waves(box_R4: torch.Tensor) -> torch.Tensor:
    """(..., 8 FREQUENCIES): sines and cosines of the edges, of 1/2, 1, 2, ... turns over the photo."""
    turn_F = math.pi * 2.0 ** torch.arange(FREQUENCIES, device=box_R4.device)
    angle = (box_R4[..., None] * turn_F).flatten(-2)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class SingleStream(Baseline):
    """See above. A title's state is its summed embeddings, a photo's its regions."""

    name = "vlbert"
    pairs_at_once = 128

    def __init__(self, *, text: dict[str, Any], grid: int, features: int) -> None:
        super().__init__(text=text, grid=grid, features=features)
        self.encoder, self.scale = TitleEncoder(**text), Standardise(features)
        H = self.encoder.width
        self.projection = nn.Linear(features, H, bias=False)
        self.geometry = nn.Linear(8 * FREQUENCIES, H, bias=False)
        self.visual = nn.Linear(features, H, bias=False)  # of the words
        for linear in (self.projection, self.geometry, self.visual):
            nn.init.normal_(linear.weight, std=0.02)
        self.region_norm = nn.LayerNorm(H, eps=self.encoder.bert.config.layer_norm_eps)
        self.pooler, self.output = nn.Linear(H, H), nn.Linear(H, 1)

    @property
    def text(self) -> TitleEncoder:
        return self.encoder

    def open(self, store: FeatureStore) -> Self:
        def found(rows: np.ndarray) -> State:
            return regions(self.scale(patches(store, rows).to(self.pooler.weight)), self.options["grid"])

        self._regions = Held(found, len(store))
        return super().open(store)

    @torch.no_grad()
    def titles(self, rows: np.ndarray) -> State:
        titles, embed = self.encoder.titles, self.encoder.bert.text_embeddings
        texts = collate_texts(titles, rows, 1, 1).to(self.encoder.device)
        summed_TH = embed.word(texts.input_id_N) + embed.position(texts.position_N) + embed.segment.weight[TEXT_SEGMENT]
        return self.encoder.padded(summed_TH, texts.cu_seqlens_S1, int(np.diff(titles.offsets).max()))

    @torch.no_grad()
    def photos(self, rows: np.ndarray) -> State:
        return self._regions(rows)

    def first_states(self, titles: State, photos: State) -> torch.Tensor:
        """Last hidden state (B, H) of [CLS]."""
        (words_BLH, live_BL), (feature_BRD, box_BR4, live_BR) = titles, photos
        bert = self.encoder.bert
        words_BLH = bert.text_embeddings.norm(words_BLH + self.visual(feature_BRD[:, :1]))
        segment_H = bert.text_embeddings.segment.weight[IMAGE_SEGMENT]
        summed_BRH = self.projection(feature_BRD) + self.geometry(box_waves(box_BR4)) + segment_H
        joint = torch.cat([words_BLH, self.region_norm(summed_BRH)], dim=1)
        live = torch.cat([live_BL, live_BR], dim=1)
        for layer in bert.encoder.layers:
            joint = run_layer(layer, joint, live)  # pyright: ignore[reportArgumentType]
        return joint[:, 0]

    def logits(self, titles: State, photos: State) -> torch.Tensor:
        """(B,) of pairs."""
        return self.output(self.pooler(self.first_states(titles, photos)).tanh()).squeeze(1)

    def meet(self, titles: State, photos: State) -> torch.Tensor:
        return self.logits(titles, photos).double()

    @classmethod
    def fit(
        cls, store: FeatureStore, rows: np.ndarray, validation: Validation, *, seed: int, budget: Budget,
        core: str | Path,
    ) -> Self:  # fmt: skip
        """All layers are trained, the words' embeddings are not."""
        torch.manual_seed(seed)
        encoder = TitleEncoder.from_bert(core, trained=1000)
        system = cls(text=encoder.options, grid=store.manifest.grid, features=store.manifest.feature_size)
        system.encoder, system.scale = encoder, standardised_patches(store, rows)
        system.open(store)
        batches = PairBatches(system, store, rows, seed)
        training = Training(system, batches.loss, rows, validation, seed, budget, epochs=8, batch_size=32)
        system.fitted = training.run()
        return system
