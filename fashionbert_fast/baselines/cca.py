"""Canonical correlation analysis of titles and photos (Hotelling, Relations between two sets of variates, 1936), with a
ridge (Vinod, Canonical ridge and econometrics of joint production, 1976).

Centred views x (N, P) and y (N, Q) with covariances

    S11 = x'x / N + r1 I,  S22 = y'y / N + r2 I,  S12 = x'y / N,  r = ridge * (trace before it) / size

give, by S11 = L1 L1', S22 = L2 L2' and the singular value decomposition L1^-1 S12 L2^-T = U diag(rho) V', the
directions a = L1^-T U, b = L2^-T V and the canonical correlations rho. A pair is scored by the cosine of x a rho^p and
y b rho^p: directions that correlate little count little. p is chosen on the validation lists.

Shapes: N products, P and Q features of the views, K dimensions kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from fashionbert_fast.baselines.fitting import Budget, Validation
from fashionbert_fast.baselines.inputs import Pooled, State, cosine
from fashionbert_fast.baselines.system import Baseline
from fashionbert_fast.errors import InputError
from fashionbert_fast.features.store import FeatureStore

RIDGE, DIMENSIONS = 0.3, 128
POWERS = (0.0, 0.5, 1.0, 2.0, 4.0)


def cca(
    x_NP: torch.Tensor, y_NQ: torch.Tensor, ridge: float = 0.0, dimensions: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Directions a (P, K) and b (Q, K) and correlations rho (K,), float64, largest first. Views need not be centred.

    Raises:
        InputError: a view's covariance cannot be inverted: features depend on one another and there is no ridge.
    """
    x_NP, y_NQ = (view.double() - view.double().mean(0) for view in (x_NP, y_NQ))
    factors = []
    for view in (x_NP, y_NQ):
        covariance = view.T @ view / len(view)
        covariance.diagonal().add_(ridge * covariance.trace() / len(covariance))
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if failed:
            raise InputError(f"cca: {view.shape[1]} features of {len(view)} products depend on one another; give more "
                             "products or a ridge above 0")  # fmt: skip
        factors.append(factor)
    first, second = factors
    whitened_PQ = torch.linalg.solve_triangular(first, x_NP.T @ y_NQ / len(x_NP), upper=False)
    whitened_PQ = torch.linalg.solve_triangular(second, whitened_PQ.T, upper=False).T
    u_PK, rho_K, v_KQ = torch.linalg.svd(whitened_PQ, full_matrices=False)
    a_PK = torch.linalg.solve_triangular(first.T, u_PK[:, :dimensions], upper=True)
    b_QK = torch.linalg.solve_triangular(second.T, v_KQ.T[:, :dimensions], upper=True)
    return a_PK, b_QK, rho_K[:dimensions]


class Cca(Baseline):
    """Of the mean patch and [LSA ; mean of a frozen BERT's tokens]."""

    name = "cca"

    def __init__(self, *, pooled: dict[str, Any], dimensions: int, power: float) -> None:
        super().__init__(pooled=pooled, dimensions=dimensions, power=power)
        self.pooled = Pooled(**pooled)
        self.title_QK: torch.Tensor
        self.photo_PK: torch.Tensor
        self.rho_K: torch.Tensor
        self.register_buffer("title_QK", torch.zeros(len(self.pooled.title_scale.mean_F), dimensions))
        self.register_buffer("photo_PK", torch.zeros(len(self.pooled.photo_scale.mean_F), dimensions))
        self.register_buffer("rho_K", torch.zeros(dimensions))

    def titles(self, rows: np.ndarray) -> State:
        return (self.pooled.titles(rows).double() @ self.title_QK.double() * self.rho_K.double() ** self.power,)

    def photos(self, rows: np.ndarray) -> State:
        return (self.pooled.photos(rows).double() @ self.photo_PK.double() * self.rho_K.double() ** self.power,)

    @property
    def power(self) -> float:
        return self.options["power"]

    def meet(self, titles: State, photos: State) -> torch.Tensor:
        return cosine(*titles, *photos)

    @classmethod
    def fit(
        cls, store: FeatureStore, rows: np.ndarray, validation: Validation, *, seed: int, budget: Budget,
        core: str | Path,
    ) -> Self:  # fmt: skip
        """In closed form; the budget is not used up."""
        pooled = Pooled.fit(store, rows, core, seed)
        photo_PK, title_QK, rho_K = cca(pooled.photos(rows), pooled.titles(rows), RIDGE, DIMENSIONS)
        with torch.device("meta"):
            system = cls(pooled=pooled.options, dimensions=len(rho_K), power=1.0)
        system.pooled = pooled
        system.title_QK, system.photo_PK, system.rho_K = title_QK.float(), photo_PK.float(), rho_K.float()
        system.store = store  # which pooled has read
        found = {}
        for power in POWERS:
            system.options["power"] = power
            found[power] = validation.of(system)
        system.options["power"] = max(found, key=lambda power: found[power])
        system.fitted = {"validation_recall": max(found.values()), "seconds": round(budget.elapsed, 2)}
        return system
