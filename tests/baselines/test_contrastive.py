"""The losses by hand and against others' formulas; what towers learn of pairs that can be told apart."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fashionbert_fast.baselines.contrastive import hinge, info_nce
from fashionbert_fast.baselines.fitting import Budget
from fashionbert_fast.baselines.systems import fit

from .conftest import recall_at_1

S = torch.tensor([[0.9, 0.8, 0.1], [0.3, 0.5, 0.6], [0.2, 0.4, 0.7]], dtype=torch.float64)
ALL_WRONG = ~torch.eye(3, dtype=torch.bool)


def test_hinges_by_hand():
    """Margin 0.2. Titles: .9 to .8, .1: .1; .5 to .3, .6: 0 + .3; .7 to .2, .4: 0. Photos: .9 to .3,
    .2: 0; .5 to .8, .4: .5 + .1; .7 to .1, .6: 0 + .1. Sums 1.1, hardest 1.0, over 3 products."""
    assert hinge(S, ALL_WRONG, 0.2, hardest=False).item() == pytest.approx(1.1 / 3)
    assert hinge(S, ALL_WRONG, 0.2, hardest=True).item() == pytest.approx(1.0 / 3)


def test_info_nce_by_hand():
    """Scale ln 2: powers of 2. Title 0: log2(2^.9 + 2^.8 + 2^.1) - .9, and so on, times ln 2."""
    values = S.tolist()
    rows = [math.log2(sum(2**v for v in values[i])) - values[i][i] for i in range(3)]
    columns = [math.log2(sum(2 ** values[j][i] for j in range(3))) - values[i][i] for i in range(3)]
    expected = math.log(2) * (sum(rows) + sum(columns)) / 6
    assert info_nce(S, ALL_WRONG, torch.tensor(math.log(2))).item() == pytest.approx(expected)


def test_info_nce_is_clip_s_loss():
    """As open_clip's ClipLoss computes it: cross-entropy of both sides against the diagonal."""
    similarity = torch.randn(7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    label = torch.arange(7)
    theirs = (F.cross_entropy(14 * similarity, label) + F.cross_entropy(14 * similarity.T, label)) / 2
    ours = info_nce(similarity, ~torch.eye(7, dtype=torch.bool), torch.tensor(14.0, dtype=torch.float64))
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


def test_nothing_known_costs_the_logarithm_of_the_batch():
    assert info_nce(S, ALL_WRONG, torch.tensor(0.0)).item() == pytest.approx(math.log(3))


@pytest.mark.parametrize("loss", [
    lambda s, w: info_nce(s, w, torch.tensor(5.0)), lambda s, w: hinge(s, w, 0.2, True),
    lambda s, w: hinge(s, w, 0.2, False),
])  # fmt: skip
def test_a_twin_is_no_negative(loss):
    wrong = ALL_WRONG.clone()
    wrong[0, 1] = wrong[1, 0] = False
    similarity = S.clone().requires_grad_()
    loss(similarity, wrong).backward()
    assert similarity.grad[0, 1] == 0 == similarity.grad[1, 0]
    everyone = S.clone().requires_grad_()
    loss(everyone, ALL_WRONG).backward()
    assert everyone.grad[0, 1] > 0


def test_a_batch_of_twins_alone_has_no_gradient():
    similarity = S.clone().requires_grad_()
    info_nce(similarity, torch.zeros(3, 3, dtype=torch.bool), torch.tensor(5.0)).backward()
    assert (similarity.grad == 0).all()


@pytest.mark.parametrize("name, epochs", [("mlp", 60), ("infonce", 40), ("vse", 40), ("vse++", 40)])
def test_towers_find_planted_pairs(planted, core, name, epochs):
    assert min(recall_at_1(fit(name, planted, core=core, budget=Budget(epochs=epochs)), planted)[:2]) > 0.8


def test_towers_learn_nothing_of_shuffled_pairs(unpaired, core):
    *found, candidates = recall_at_1(fit("mlp", unpaired, core=core, budget=Budget(epochs=20)), unpaired)
    assert max(found) < 5 / candidates
