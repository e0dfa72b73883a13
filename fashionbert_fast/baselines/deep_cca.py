"""Deep CCA (Andrew et al., Deep Canonical Correlation Analysis, ICML 2013) and DCCAE (Wang et al., On Deep Multi-View
Representation Learning, ICML 2015).

A perceptron on each view, trained for the largest total correlation of what they make of a batch,

    -sum of the singular values of L1^-1 S12 L2^-T,   S11 + r I = L1 L1',  S22 + r I = L2 L2'

(S11^-1/2 S12 S22^-1/2, as in the papers, has the same singular values; Cholesky factors have a stable gradient.)
DCCAE adds lambda times the mean square by which two further perceptrons miss the views. A linear CCA of what the
networks make of all training products follows, and pairs are scored as by `cca`.

Shapes: B products of a batch, N products, n rows asked for, K width of what the networks make, P and Q inputs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fashionbert_fast.baselines.cca import cca
from fashionbert_fast.baselines.fitting import Budget, Training, Validation
from fashionbert_fast.baselines.inputs import Pooled, State, cosine
from fashionbert_fast.baselines.system import Baseline
from fashionbert_fast.features.store import FeatureStore

HIDDEN, WIDTH, BATCH = 512, 64, 1024
REGULARISER = 1e-3  # r, of outputs of unit variance
LINEAR_RIDGE, POWER = 0.01, 2.0  # of the linear CCA, and the weight of its correlations
RECONSTRUCTION = 0.1  # lambda


def total_correlation(x_BK: torch.Tensor, y_BK: torch.Tensor, regulariser: float) -> torch.Tensor:
    """The sum of the canonical correlations of two views, a scalar; differentiable."""
    x_BK, y_BK = x_BK - x_BK.mean(0), y_BK - y_BK.mean(0)
    factors = []
    for view in (x_BK, y_BK):
        covariance = view.T @ view / len(view)
        factors.append(torch.linalg.cholesky(covariance + regulariser * torch.eye(len(covariance)).to(covariance)))
    whitened = torch.linalg.solve_triangular(factors[0], x_BK.T @ y_BK / len(x_BK), upper=False)
    whitened = torch.linalg.solve_triangular(factors[1], whitened.T, upper=False)
    return torch.linalg.matrix_norm(whitened, ord="nuc")


def _network(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, outputs))


class DeepCca(Baseline):
    """Of the vectors that CCA has; no network depends on the other view."""

    name = "dcca"
    reconstructs = False

    def __init__(self, *, pooled: dict[str, Any], width: int) -> None:
        super().__init__(pooled=pooled, width=width)
        self.pooled = Pooled(**pooled)
        title_P, photo_Q = len(self.pooled.title_scale.mean_F), len(self.pooled.photo_scale.mean_F)
        self.title_network, self.photo_network = _network(title_P, width), _network(photo_Q, width)
        if self.reconstructs:
            self.title_decoder, self.photo_decoder = _network(width, title_P), _network(width, photo_Q)
        self.title_mean_K: torch.Tensor
        self.photo_mean_K: torch.Tensor
        self.title_KK: torch.Tensor
        self.photo_KK: torch.Tensor
        for side in ("title", "photo"):
            self.register_buffer(f"{side}_mean_K", torch.zeros(width))
            self.register_buffer(f"{side}_KK", torch.zeros(width, width))
        self.rows = np.empty(0, np.int64)  # of training

    def titles(self, rows: np.ndarray) -> State:
        made_nK = self.title_network(self.pooled.titles(rows))
        return ((made_nK - self.title_mean_K) @ self.title_KK,)

    def photos(self, rows: np.ndarray) -> State:
        made_nK = self.photo_network(self.pooled.photos(rows))
        return ((made_nK - self.photo_mean_K) @ self.photo_KK,)

    def meet(self, titles: State, photos: State) -> torch.Tensor:
        return cosine(*titles, *photos)

    def loss(self, rows: np.ndarray, epoch: int) -> torch.Tensor:
        """Of a batch of products."""
        title_BP, photo_BQ = self.pooled.titles(rows), self.pooled.photos(rows)
        title_BK, photo_BK = self.title_network(title_BP), self.photo_network(photo_BQ)
        loss = -total_correlation(title_BK.double(), photo_BK.double(), REGULARISER).float()
        if self.reconstructs:
            missed = F.mse_loss(self.title_decoder(title_BK), title_BP) + F.mse_loss(
                self.photo_decoder(photo_BK), photo_BQ
            )
            loss = loss + RECONSTRUCTION * missed
        return loss

    @torch.no_grad()
    def settle(self) -> None:
        """The linear CCA of what the networks make of the training products now."""
        title_NK = self.title_network(self.pooled.titles(self.rows))
        photo_NK = self.photo_network(self.pooled.photos(self.rows))
        a_KK, b_KK, rho_K = cca(title_NK, photo_NK, LINEAR_RIDGE)
        self.title_mean_K.copy_(title_NK.mean(0))
        self.photo_mean_K.copy_(photo_NK.mean(0))
        self.title_KK.copy_(a_KK * rho_K**POWER)
        self.photo_KK.copy_(b_KK * rho_K**POWER)

    @classmethod
    def fit(
        cls, store: FeatureStore, rows: np.ndarray, validation: Validation, *, seed: int, budget: Budget,
        core: str | Path,
    ) -> Self:  # fmt: skip
        pooled = Pooled.fit(store, rows, core, seed)
        torch.manual_seed(seed)
        system = cls(pooled=pooled.options, width=min(WIDTH, max(1, len(rows) // 8)))
        system.pooled, system.store, system.rows = pooled, store, rows
        system.fitted = Training(system, system.loss, rows, validation, seed, budget, epochs=40, batch_size=BATCH).run()
        return system


class DeepCcaAutoencoder(DeepCca):
    name = "dccae"
    reconstructs = True
