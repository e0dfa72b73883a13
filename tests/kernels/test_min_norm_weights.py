"""min_norm_weights: against an independent solver, on degenerate Gram matrices, and what must not matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from fashionbert_fast.kernels import min_norm_weights


def _random_gram(generator: torch.Generator, tasks: int) -> torch.Tensor:
    gradients = torch.randn(tasks, 5, generator=generator, dtype=torch.float64)
    return gradients @ gradients.T


def _scipy_value(gram: np.ndarray) -> float:
    tasks = len(gram)
    best = minimize(
        lambda w: w @ gram @ w,
        np.full(tasks, 1 / tasks),
        jac=lambda w: 2 * gram @ w,
        bounds=[(0, 1)] * tasks,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(tasks)},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 200},
    )
    return best.fun


@pytest.mark.parametrize("tasks", [2, 3])
def test_matches_an_independent_solver(tasks):
    generator = torch.Generator().manual_seed(tasks)
    for _ in range(200):
        gram_TT = _random_gram(generator, tasks)
        weights_T = min_norm_weights(gram_TT)
        assert weights_T.min() >= 0
        assert abs(weights_T.sum().item() - 1) < 1e-12
        value = (weights_T @ gram_TT @ weights_T).item()
        assert value == pytest.approx(_scipy_value(gram_TT.numpy()), abs=1e-6)


@pytest.mark.parametrize(
    ("gram", "weights"),
    [
        ([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]], [1 / 3, 1 / 3, 1 / 3]),  # orthogonal and equal
        ([[4.0, 0, 0], [0, 1, 0], [0, 0, 2]], [1 / 7, 4 / 7, 2 / 7]),  # orthogonal: inverse squared norms
        ([[1.0, 2, 2], [2, 9, 5], [2, 5, 9]], [1.0, 0, 0]),  # the first is the smallest of an acute cone: a vertex
        ([[1.0, -1, 0], [-1, 1, 0], [0, 0, 5]], [0.5, 0.5, 0]),  # two opposite gradients: norm 0 on an edge
        ([[0.0, 0, 0], [0, 3, 1], [0, 1, 3]], [1.0, 0, 0]),  # a task without gradient
    ],
)
def test_known_solutions(gram, weights):
    solved = min_norm_weights(torch.tensor(gram, dtype=torch.float64))
    torch.testing.assert_close(solved, torch.tensor(weights, dtype=torch.float64), atol=1e-12, rtol=0)


def test_scale_and_permutation_do_not_matter():
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        gram_TT = _random_gram(generator, 3)
        weights_T = min_norm_weights(gram_TT)
        torch.testing.assert_close(min_norm_weights(gram_TT * 1e-12), weights_T, atol=1e-9, rtol=0)
        torch.testing.assert_close(min_norm_weights(gram_TT * 1e12), weights_T, atol=1e-9, rtol=0)
        order = torch.randperm(3, generator=generator)
        torch.testing.assert_close(min_norm_weights(gram_TT[order][:, order]), weights_T[order], atol=1e-9, rtol=0)


def test_all_zero_and_all_equal_give_finite_weights():
    for gram_TT in (torch.zeros(3, 3), torch.ones(3, 3), torch.zeros(2, 2), torch.ones(1, 1)):
        weights_T = min_norm_weights(gram_TT)
        assert weights_T.isfinite().all()
        assert weights_T.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("gram", [torch.ones(2, 3), torch.ones(4, 4), torch.ones(3, 3, dtype=torch.int32)])
def test_bad_arguments_are_named(gram):
    with pytest.raises(ValueError, match="gram_TT"):
        min_norm_weights(gram)
