"""Selfie's objective: worked by hand. Its gradients in a run: tests/engine/test_contrastive.py."""

from __future__ import annotations

import math

import pytest
import torch

from fashionbert_fast.objectives.patch_matching import patch_matching_loss

FEATURES_RD = torch.tensor([[3.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 4.0, 0.1, 0.0]])


def test_without_a_preference_it_is_the_log_of_the_choices_of_each_pair():
    """Three patches of one pair, two of another: 3 ln 3 + 2 ln 2."""
    loss = patch_matching_loss(
        torch.zeros(5, 4), FEATURES_RD, torch.tensor([0, 1, 2, 0, 2]), torch.tensor([7, 7, 7, 9, 9])
    )
    assert loss.item() == pytest.approx(3 * math.log(3) + 2 * math.log(2))


def test_the_scores_are_scaled_dot_products():
    """Of row 0: 1 * 3 / 2 of its own, 2 * 2 / 2 of the other. Of row 1: 0 and 0."""
    predicted_KD = torch.tensor([[1.0, 2.0, 0.0, 5.0], [0.0, 0.0, 0.0, 5.0]])
    loss = patch_matching_loss(predicted_KD, FEATURES_RD, torch.tensor([0, 1]), torch.tensor([0, 0]))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(2 - 1.5)) + math.log(2))


def test_patches_that_look_alike_are_no_wrong_choices():
    """Rows 1 and 3 are nearly parallel, and row 1 stands there twice: nothing is left to confuse them with."""
    target_row_K = torch.tensor([1, 3, 1])
    assert patch_matching_loss(torch.randn(3, 4), FEATURES_RD, target_row_K, torch.zeros(3, dtype=torch.int64)) == 0
    assert patch_matching_loss(torch.randn(0, 4), FEATURES_RD, target_row_K[:0], target_row_K[:0]) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_tells_them_apart_is_learned(dtype):
    """Each place's own direction: the loss goes to 0."""
    target_row_K, pair_K = torch.tensor([0, 1, 2]), torch.zeros(3, dtype=torch.int64)
    predicted_KD = (100 * torch.eye(3, 4, dtype=dtype)).requires_grad_()
    loss = patch_matching_loss(predicted_KD, FEATURES_RD.to(dtype), target_row_K, pair_K)
    loss.backward()
    assert 0 <= loss < 1e-6 and predicted_KD.grad.isfinite().all()
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
