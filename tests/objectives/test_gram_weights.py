"""IMTL-G and Nash-MTL against the papers' own formulas on gradients, in float64, and what each promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from fashionbert_fast.objectives.gram_weights import RIDGE, equal_projections, nash_bargain


def _gradients(kind: str, tasks: int, count: int = 60) -> torch.Tensor:
    """(N, T, 6) float64, of length 1."""
    generator = torch.Generator().manual_seed(tasks)
    gradients = torch.randn(count, tasks, 6, generator=generator, dtype=torch.float64)
    if kind == "acute":
        gradients = gradients * 0.3 + gradients[:, :1]
    elif kind == "one plane":
        gradients[..., 2:] = 0
    elif kind == "two opposite":
        gradients[:, 1] = -gradients[:, 0]
    elif kind == "two equal":
        gradients[:, 1] = gradients[:, 0]
    return gradients / gradients.norm(dim=2, keepdim=True)


KINDS = ("random", "acute", "one plane", "two opposite", "two equal")
SHARES = {2: [3.0, 1.0], 3: [0.1, 1.0, 0.1], 4: [0.5, 1.0, 2.0, 10.0]}


@pytest.mark.parametrize("tasks", [2, 3, 4])
@pytest.mark.parametrize("kind", ["random", "acute"])
def test_equal_projections_is_the_papers_closed_form(kind, tasks):
    """alpha_2.. = g_1 U' (D U')^-1 with rows U = u_1 - u_i, D = g_1 - g_i; its weights sum to 1. Where the ridge is
    nothing beside the smallest eigenvalue."""
    unit_NTD = _gradients(kind, tasks)
    clear_N = torch.linalg.eigvalsh(unit_NTD @ unit_NTD.mT)[:, 0] > 1e-2
    assert clear_N.sum() > 20
    for unit_TD in unit_NTD[clear_N]:
        lengths_T = torch.logspace(-2, 1, tasks, dtype=torch.float64)
        g_TD = unit_TD * lengths_T[:, None]
        U, D = unit_TD[:1] - unit_TD[1:], g_TD[:1] - g_TD[1:]
        alpha = g_TD[0] @ U.T @ torch.linalg.inv(D @ U.T)
        expected_T = torch.cat([1 - alpha.sum(dim=0, keepdim=True), alpha])
        ours_T = equal_projections(unit_TD @ unit_TD.T, torch.ones(tasks, dtype=torch.float64)) / lengths_T
        torch.testing.assert_close(ours_T / ours_T.sum(), expected_T, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("share", ["equal", "unequal"])
@pytest.mark.parametrize("tasks", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["random", "acute"])
def test_the_mix_projects_on_each_gradient_as_its_share(kind, tasks, share):
    share_T = torch.tensor(SHARES[tasks] if share == "unequal" and tasks > 1 else [1.0] * tasks, dtype=torch.float64)
    for unit_TD in _gradients(kind, tasks):
        length_T = equal_projections(unit_TD @ unit_TD.T, share_T)
        torch.testing.assert_close(unit_TD @ (length_T @ unit_TD) + RIDGE * length_T, share_T, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("share", ["equal", "unequal"])
@pytest.mark.parametrize("tasks", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bargain_is_where_each_task_gains_its_share(kind, tasks, share):
    """C v = share / v with v > 0: as in the paper where shares are 1. Of gradients that cancel it holds with the
    ridge only, up to what is left after a fixed number of steps."""
    if tasks == 1 and kind.startswith("two"):
        pytest.skip("one gradient is no two")
    share_T = torch.tensor(SHARES[tasks] if share == "unequal" and tasks > 1 else [1.0] * tasks, dtype=torch.float64)
    for unit_TD in _gradients(kind, tasks):
        cosine_TT = unit_TD @ unit_TD.T
        length_T = nash_bargain(cosine_TT, share_T)
        assert (length_T > 0).all()
        gain_T = length_T * ((cosine_TT + RIDGE * torch.eye(tasks)) @ length_T)
        torch.testing.assert_close(gain_T / gain_T.sum(), share_T / share_T.sum(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("tasks", [2, 3, 4])
def test_the_bargain_is_what_scipy_finds(tasks):
    for unit_TD in _gradients("random", tasks, 20):
        cosine = (unit_TD @ unit_TD.T).numpy() + RIDGE * np.eye(tasks)
        found = minimize(
            lambda logs, c=cosine: np.exp(logs) @ c @ np.exp(logs) / 2 - logs.sum(), np.zeros(tasks), method="BFGS",
            options={"gtol": 1e-9},
        )  # fmt: skip
        ours_T = nash_bargain(unit_TD @ unit_TD.T, torch.ones(tasks, dtype=torch.float64))
        theirs_T = torch.from_numpy(np.exp(found.x))
        torch.testing.assert_close(ours_T / ours_T.sum(), theirs_T / theirs_T.sum(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("function", [equal_projections, nash_bargain])
def test_gradients_without_a_unique_solution_share_alike(function):
    one = torch.ones(2, dtype=torch.float64)
    for other in (1.0, -1.0):  # equal; opposite
        v_T = function(torch.tensor([[1.0, other], [other, 1.0]], dtype=torch.float64), one)
        torch.testing.assert_close(v_T[0], v_T[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("function", [equal_projections, nash_bargain])
def test_not_a_number_is_not_hidden(function):
    cosine_TT = torch.eye(3, dtype=torch.float64)
    cosine_TT[0, 1] = cosine_TT[1, 0] = torch.nan
    assert function(cosine_TT, torch.ones(3, dtype=torch.float64)).isnan().any()
