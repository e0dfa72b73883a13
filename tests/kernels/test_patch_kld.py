"""patch_kld: the definition, the empty case, gradients, bad input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fashionbert_fast.kernels import patch_kld


def test_matches_the_definition():
    logits_MD, target_MD = torch.randn(7, 33), torch.randn(7, 33) * 3
    p, q = torch.softmax(target_MD, 1), torch.softmax(logits_MD, 1)
    torch.testing.assert_close(patch_kld(logits_MD, target_MD), (p * (p / q).log()).sum(1).mean(), rtol=1e-5, atol=1e-6)
    kl_div = F.kl_div(torch.log_softmax(logits_MD, 1), p, reduction="batchmean")
    torch.testing.assert_close(patch_kld(logits_MD, target_MD), kl_div, rtol=1e-5, atol=1e-6)


def test_no_rows_give_zero_with_a_gradient():
    logits_MD = torch.randn(0, 5, requires_grad=True)
    loss = patch_kld(logits_MD, torch.randn(0, 5))
    loss.backward()
    assert loss.item() == 0
    assert logits_MD.grad.shape == (0, 5)


def test_equal_inputs_give_zero_and_extremes_stay_finite():
    x = torch.randn(3, 9)
    assert patch_kld(x, x).abs() < 1e-6
    assert patch_kld(x * 1e4, x * -1e4).isfinite()


def test_gradcheck():
    logits_MD = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: patch_kld(x, torch.linspace(-1, 1, 15).double().view(3, 5)), (logits_MD,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(dtype):
    logits_MD, target_MD = torch.randn(4, 2048).to(dtype), torch.randn(4, 2048).to(dtype)
    loss = patch_kld(logits_MD, target_MD)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), patch_kld(logits_MD.double(), target_MD.double()), rtol=1e-5, atol=1e-6)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="logits_MD"):
        patch_kld(torch.randn(3), torch.randn(3))
    with pytest.raises(ValueError, match="target_MD"):
        patch_kld(torch.randn(3, 4), torch.randn(4, 3))
    with pytest.raises(ValueError, match="target_MD"):
        patch_kld(torch.randn(3, 4), torch.ones(3, 4, dtype=torch.int64))
