"""Deep CCA: its loss is CCA's, its gradient right, and it finds what no linear map can."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fashionbert_fast.baselines.cca import cca
from fashionbert_fast.baselines.deep_cca import total_correlation
from fashionbert_fast.baselines.fitting import Budget
from fashionbert_fast.baselines.systems import fit

from .conftest import recall_at_1


@pytest.fixture
def views():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(200, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(2, 200, 3, generator=generator, dtype=torch.float64)
    return z + 0.7 * noise[0], (z + 0.7 * noise[1]) @ torch.randn(3, 4, generator=generator, dtype=torch.float64)


def test_identity_networks_have_cca_s_correlation():
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, 500, 4, generator=generator, dtype=torch.float64)
    y = y + x.flip(1)
    assert total_correlation(x, y, 0.0).item() == pytest.approx(cca(x, y)[2].sum().item(), abs=1e-10)


def test_it_is_the_symmetric_whitening_s(views):
    """S11^-1/2 S12 S22^-1/2 by eigenvalues, as the papers write it."""
    x, y = views[0], views[1][:, :3]

    def inverse_root(s):
        value, vector = np.linalg.eigh(s)
        return vector @ np.diag(value**-0.5) @ vector.T

    a, b = ((view - view.mean(0)).numpy() for view in (x, y))
    s11, s22 = (v.T @ v / 200 + 1e-3 * np.eye(3) for v in (a, b))
    whitened = inverse_root(s11) @ (a.T @ b / 200) @ inverse_root(s22)
    assert total_correlation(x, y, 1e-3).item() == pytest.approx(np.linalg.svd(whitened)[1].sum(), abs=1e-9)


def test_its_gradient(views):
    x, y = (view[:30].clone().requires_grad_() for view in views)
    assert torch.autograd.gradcheck(lambda x, y: total_correlation(x, y, 1e-3), (x, y))


def test_it_finds_what_is_not_linear():
    """x = (z, noise), y = z^2: no linear correlation, but the networks' is near 1."""
    generator = torch.Generator().manual_seed(0)
    z, noise = torch.randn(2, 2000, 1, generator=generator)
    views = torch.cat([z, noise], dim=1), torch.cat([z.square(), noise.flip(0)], dim=1)
    assert cca(*views)[2][0] < 0.3
    torch.manual_seed(0)
    networks = [torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.GELU(), torch.nn.Linear(32, 1)) for _ in range(2)]
    optimizer = torch.optim.Adam([p for network in networks for p in network.parameters()], lr=0.01)
    for _ in range(200):
        loss = -total_correlation(networks[0](views[0]), networks[1](views[1]), 1e-3)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert -loss.item() > 0.9


@pytest.mark.parametrize("name", ["dcca", "dccae"])
def test_it_finds_planted_pairs_and_nothing_where_pairs_are_shuffled(planted, unpaired, core, name):
    found = recall_at_1(fit(name, planted, core=core, budget=Budget(epochs=80)), planted)
    assert min(found[:2]) > 0.6
    *nothing, candidates = recall_at_1(fit(name, unpaired, core=core, budget=Budget(epochs=10)), unpaired)
    assert max(nothing) < 5 / candidates
