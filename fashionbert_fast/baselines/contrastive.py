"""Two towers that meet in a cosine, trained on the matrix of all pairs of a batch.

    infonce  each title finds its photo among those of the batch by a softmax, and each photo its title; the scale of
             cosines is learned (van den Oord et al., Representation Learning with Contrastive Predictive Coding, 2018;
             both directions as in CLIP, Radford et al. 2021)
    vse      hinge over all wrong pairs, summed (Kiros et al., Unifying Visual-Semantic Embeddings, 2014)
    vse++    hinge over the hardest wrong pair of each (Faghri et al., VSE++, 2018), the first epoch on the sum: from
             the start the hardest pair pulls all vectors together

Wrong pairs are those of products that are no twins of one another: one title or photo twice in a batch is no mistake.

    mlp      towers over the vectors that CCA has (frozen), infonce
    infonce, vse, vse++   towers over tokens, the BERT's upper half trained, and over patches

Shapes: B products of a batch, n rows asked for, P patches, D patch feature, H width, Q queries of the photo's pooling,
E numbers of a vector.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fashionbert_fast.baselines.fitting import Budget, Training, Validation
from fashionbert_fast.baselines.inputs import (
    Pooled,
    Standardise,
    State,
    TitleEncoder,
    cosine,
    patches,
    standardised_patches,
)
from fashionbert_fast.baselines.system import Baseline
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.objectives.query_title_image import am_softmax

WIDTH, VECTOR, POOLING_QUERIES, HIDDEN = 384, 256, 4, 512
MARGIN, SCALE, MOST_SCALE = 0.2, 14.0, 100.0
TRAINED_LAYERS = 3


# Losses: similarities S of title b with photo c, wrong_BB True where they are no twins -----------------
def info_nce(similarity_BB: torch.Tensor, wrong_BB: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The mean of both directions' softmax losses over ``scale`` times the similarities, a scalar."""
    right_B, losses = similarity_BB.diagonal(), []
    for wrongs_BB in (similarity_BB, similarity_BB.T):
        logits_BB = (scale * wrongs_BB).masked_fill(~wrong_BB, -math.inf)
        losses.append(am_softmax(scale * right_B, logits_BB, 1.0, 0.0).mean())
    return torch.stack(losses).mean()


def hinge(similarity_BB: torch.Tensor, wrong_BB: torch.Tensor, margin: float, hardest: bool) -> torch.Tensor:
    """max(0, margin - right + wrong) of both directions, summed over all wrong pairs, or only the hardest one of each
    title and of each photo; the mean over the batch, a scalar."""
    right_B = similarity_BB.diagonal()
    total = similarity_BB.new_zeros(())
    for wrongs_BB in (similarity_BB, similarity_BB.T):
        cost_BB = (margin - right_B[:, None] + wrongs_BB).clamp(min=0).masked_fill(~wrong_BB, 0.0)
        total = total + (cost_BB.amax(1) if hardest else cost_BB.sum(1)).mean()
    return total


def wrong_pairs(store: FeatureStore, rows: np.ndarray, device: torch.device) -> torch.Tensor:
    """bool (B, B): title b and photo c are of products that are no twins."""
    twin_B = torch.from_numpy(store.twin_N[rows]).to(device)
    return twin_B[:, None] != twin_B


# Towers --------------------------------------------------------------------------------------------------------------
class _Contrastive(Baseline):
    """What both kinds share: vectors by `title_vectors` and `photo_vectors`, the losses, the cosine."""

    loss_name = "infonce"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.log_scale = nn.Parameter(torch.tensor(math.log(SCALE)))

    def title_vectors(self, rows: np.ndarray) -> torch.Tensor:
        """(n, E) of length 1."""
        raise NotImplementedError

    def photo_vectors(self, rows: np.ndarray) -> torch.Tensor:
        """(n, E) of length 1."""
        raise NotImplementedError

    def titles(self, rows: np.ndarray) -> State:
        return (self.title_vectors(rows),)

    def photos(self, rows: np.ndarray) -> State:
        return (self.photo_vectors(rows),)

    def meet(self, titles: State, photos: State) -> torch.Tensor:
        return cosine(*titles, *photos)

    def loss(self, rows: np.ndarray, epoch: int) -> torch.Tensor:
        """Of a batch of products."""
        similarity_BB = self.title_vectors(rows) @ self.photo_vectors(rows).T
        wrong_BB = wrong_pairs(self.store, rows, similarity_BB.device)
        if self.loss_name == "infonce":
            return info_nce(similarity_BB, wrong_BB, self.log_scale.exp().clamp(max=MOST_SCALE))
        return hinge(similarity_BB, wrong_BB, MARGIN, hardest=self.loss_name == "vse++" and epoch > 0)


def _tower(features: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Dropout(0.1), nn.Linear(features, HIDDEN), nn.GELU(), nn.Dropout(0.1), nn.Linear(HIDDEN, VECTOR)
    )


class Mlp(_Contrastive):
    """Perceptrons of one hidden layer over the pooled vectors."""

    name = "mlp"

    def __init__(self, *, pooled: dict[str, Any]) -> None:
        super().__init__(pooled=pooled)
        self.pooled = Pooled(**pooled)
        self.title_tower = _tower(len(self.pooled.title_scale.mean_F))
        self.photo_tower = _tower(len(self.pooled.photo_scale.mean_F))

    def title_vectors(self, rows: np.ndarray) -> torch.Tensor:
        return F.normalize(self.title_tower(self.pooled.titles(rows)), dim=1)

    def photo_vectors(self, rows: np.ndarray) -> torch.Tensor:
        return F.normalize(self.photo_tower(self.pooled.photos(rows)), dim=1)

    @classmethod
    def fit(
        cls, store: FeatureStore, rows: np.ndarray, validation: Validation, *, seed: int, budget: Budget,
        core: str | Path,
    ) -> Self:  # fmt: skip
        pooled = Pooled.fit(store, rows, core, seed)
        torch.manual_seed(seed)
        system = cls(pooled=pooled.options)
        system.pooled, system.store = pooled, store
        training = Training(system, system.loss, rows, validation, seed, budget, epochs=40, batch_size=512)
        system.fitted = training.run()
        return system


class PhotoTower(nn.Module):
    """Patches -> linear + position -> LayerNorm -> Q learned queries and the mean -> linear."""

    def __init__(self, patches: int, features: int) -> None:
        super().__init__()
        self.scale = Standardise(features)
        self.projection = nn.Linear(features, WIDTH)
        self.position = nn.Parameter(torch.randn(patches, WIDTH) * 0.02)
        self.norm = nn.LayerNorm(WIDTH)
        self.query_QH = nn.Parameter(torch.randn(POOLING_QUERIES, WIDTH) * 0.02)
        self.output = nn.Linear((POOLING_QUERIES + 1) * WIDTH, VECTOR)

    def forward(self, features_nPD: torch.Tensor) -> torch.Tensor:
        """(n, E) of length 1."""
        hidden_nPH = self.norm(self.projection(self.scale(features_nPD)) + self.position)
        weight_nQP = (self.query_QH @ hidden_nPH.mT / math.sqrt(WIDTH)).softmax(-1)
        read_nQH = torch.cat([weight_nQP @ hidden_nPH, hidden_nPH.mean(1, keepdim=True)], dim=1)
        return F.normalize(self.output(read_nQH.flatten(1)), dim=1)


class DualEncoder(_Contrastive):
    """A BERT, its upper half trained, and attention over patches."""

    name = "infonce"
    batch_size, epochs = 128, 10

    def __init__(self, *, text: dict[str, Any], patches: int, features: int) -> None:
        super().__init__(text=text, patches=patches, features=features)
        self.encoder = TitleEncoder(**text)
        self.title_output = nn.Linear(self.encoder.width, VECTOR)
        self.photo_tower = PhotoTower(patches, features)

    @property
    def text(self) -> TitleEncoder:
        return self.encoder

    def title_vectors(self, rows: np.ndarray) -> torch.Tensor:
        return F.normalize(self.title_output(self.encoder.means(rows)), dim=1)

    def photo_vectors(self, rows: np.ndarray) -> torch.Tensor:
        return self.photo_tower(patches(self.store, rows).to(self.photo_tower.position))

    @classmethod
    def fit(
        cls, store: FeatureStore, rows: np.ndarray, validation: Validation, *, seed: int, budget: Budget,
        core: str | Path,
    ) -> Self:  # fmt: skip
        torch.manual_seed(seed)
        encoder = TitleEncoder.from_bert(core, TRAINED_LAYERS)
        manifest = store.manifest
        system = cls(text=encoder.options, patches=manifest.patches, features=manifest.feature_size)
        system.encoder = encoder
        system.photo_tower.scale = standardised_patches(store, rows)
        system.open(store)
        encoder.hold(np.concatenate([rows, validation.rows]))
        training = Training(
            system, system.loss, rows, validation, seed, budget, epochs=cls.epochs, batch_size=cls.batch_size
        )
        system.fitted = training.run()
        return system


class Vse(DualEncoder):
    name = loss_name = "vse"


class VsePlusPlus(DualEncoder):
    name = loss_name = "vse++"
