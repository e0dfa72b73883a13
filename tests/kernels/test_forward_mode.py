"""No operator has a forward-mode derivative, and torch would take it for zero: each refuses, and by name."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

from fashionbert_fast import kernels
from fashionbert_fast.kernels.task_gradients import task_gram, task_mix
from fashionbert_fast.operators import OPERATORS


def _normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


OFFSETS, ONES, ZEROS = torch.tensor([0, 3, 8], dtype=torch.int32), torch.ones(24), torch.zeros(24)
WORDS, UNMASKED = torch.zeros(8, dtype=torch.int64), torch.zeros(1, 8, dtype=torch.bool)
FUNCTIONS = {  # of (8, 24) numbers
    "adaptive_loss": lambda x: kernels.adaptive_loss(x.flatten()[:3].abs() + 1)[0],
    "bias_gelu": kernels.bias_gelu,
    "dropout_add_layer_norm": lambda x: kernels.dropout_add_layer_norm(torch.ones(8, 24), x, ONES, ZEROS),
    "linear_cross_entropy": lambda x: kernels.linear_cross_entropy(x, _normal(5, 24), None, WORDS),
    "linear_patch_kld": lambda x: kernels.linear_patch_kld(x, _normal(5, 24), _normal(8, 5)),
    "masked_patch_embed": lambda x: kernels.masked_patch_embed(
        x[None], UNMASKED, _normal(4, 24), _normal(8, 4), ONES[:4], ONES[:4], ZEROS[:4]
    ),
    "min_norm_weights": lambda x: kernels.min_norm_weights(x[:3] @ x[:3].T),
    "packed_attention": lambda x: kernels.packed_attention(x, OFFSETS, 2, max_seqlen=5),
    "patch_kld": lambda x: kernels.patch_kld(x, torch.ones_like(x)),
    "task_gradients": lambda x: task_gram((x, x, x)),
    "task_gradients, mixed": lambda x: task_mix((x, x, x), torch.ones(3)),
}


def test_no_operator_is_left_out():
    assert {name.split(",")[0] for name in FUNCTIONS} == {operator.name for operator in OPERATORS}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_jvp_is_refused(name):
    x = _normal(8, 24)
    with pytest.raises(NotImplementedError, match="has no forward-mode derivative"):
        torch.func.jvp(FUNCTIONS[name], (x,), (torch.ones_like(x),))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError):
        FUNCTIONS[name](forward_ad.make_dual(x, torch.ones_like(x)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_without_a_tangent_nothing_is_refused(name):
    x = _normal(8, 24)
    with forward_ad.dual_level():
        inside = FUNCTIONS[name](x)
    torch.testing.assert_close(inside, FUNCTIONS[name](x), atol=0, rtol=0)
