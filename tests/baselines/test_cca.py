"""CCA against libraries and optima that are known beforehand."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.cross_decomposition import CCA

from fashionbert_fast.baselines.cca import cca
from fashionbert_fast.baselines.fitting import Budget
from fashionbert_fast.baselines.systems import fit
from fashionbert_fast.errors import InputError

from .conftest import recall_at_1


@pytest.fixture
def views():
    generator = np.random.default_rng(1)
    z = generator.normal(size=(600, 3))
    x = np.concatenate([z + 0.5 * generator.normal(size=z.shape), generator.normal(size=(600, 4))], axis=1)
    y = z @ generator.normal(size=(3, 5)) + generator.normal(size=(600, 5))
    return x @ generator.normal(size=(7, 7)) + 3, y - 1


def test_correlations_are_those_of_scikit_learn(views):
    x, y = views
    a, b, rho = cca(torch.from_numpy(x), torch.from_numpy(y))
    reference = CCA(5, max_iter=100_000, tol=1e-14, scale=False).fit(x, y)
    theirs = [
        np.corrcoef(*pair)[0, 1] for pair in zip(*(scores.T for scores in reference.transform(x, y)), strict=True)
    ]
    np.testing.assert_allclose(rho, theirs, atol=1e-9)
    ours = [np.corrcoef(*pair)[0, 1] for pair in zip((x @ a.numpy()).T, (y @ b.numpy()).T, strict=True)]
    np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_a_ridge_solves_the_generalised_eigenproblem(views):
    """[0 S12; S21 0] w = rho [S11 0; 0 S22] w, by LAPACK's solver of it."""
    x, y = (view - view.mean(0) for view in views)
    s11, s22, s12 = (p.T @ q / len(p) for p, q in ((x, x), (y, y), (x, y)))
    s11 += 0.3 * np.trace(s11) / 7 * np.eye(7)
    s22 += 0.3 * np.trace(s22) / 5 * np.eye(5)
    left = np.block([[np.zeros((7, 7)), s12], [s12.T, np.zeros((5, 5))]])
    theirs = scipy.linalg.eigh(left, scipy.linalg.block_diag(s11, s22), eigvals_only=True)[::-1][:5]
    a, b, rho = cca(*(torch.from_numpy(view) for view in views), ridge=0.3)
    np.testing.assert_allclose(rho, theirs, atol=1e-12)
    np.testing.assert_allclose(a.T.numpy() @ s12 @ b.numpy(), np.diag(theirs), atol=1e-12)


def test_linear_maps_of_a_view_change_nothing(views):
    x, y = (torch.from_numpy(view) for view in views)
    mapped = x @ torch.from_numpy(np.random.default_rng(2).normal(size=(7, 7))) + 5
    torch.testing.assert_close(cca(mapped, y)[2], cca(x, y)[2], atol=1e-9, rtol=0)


@pytest.mark.parametrize("noise", [0.5, 1.0])
def test_a_shared_signal_has_the_correlation_of_the_textbook(noise):
    """x = z + noise, y = z + noise: rho = 1 / (1 + noise^2)."""
    generator = torch.Generator().manual_seed(0)
    z, first, second = torch.randn(3, 200_000, 1, generator=generator, dtype=torch.float64)
    assert cca(z + noise * first, z + noise * second)[2].item() == pytest.approx(1 / (1 + noise**2), abs=0.01)


def test_features_that_depend_on_one_another_need_a_ridge(views):
    x, y = (torch.from_numpy(view) for view in views)
    doubled = torch.cat([x, x], dim=1)
    with pytest.raises(InputError, match="ridge"):
        cca(doubled, y)
    assert cca(doubled, y, ridge=0.1)[2].isfinite().all()


def test_it_finds_planted_pairs_and_nothing_where_pairs_are_shuffled(planted, unpaired, core):
    found = recall_at_1(fit("cca", planted, core=core), planted)
    assert min(found[:2]) > 0.8
    *nothing, candidates = recall_at_1(fit("cca", unpaired, core=core, budget=Budget(epochs=1)), unpaired)
    assert max(nothing) < 5 / candidates
