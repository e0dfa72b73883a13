"""The operators under torch.autocast: what is cast, to what, and that gradients come back as the parameters are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch

from fashionbert_fast import kernels
from fashionbert_fast.kernels.task_gradients import task_gram, task_mix
from fashionbert_fast.operators import OPERATORS

BF16, F32 = torch.bfloat16, torch.float32
CU_SEQLENS, SEED = torch.tensor([0, 3, 8], dtype=torch.int32), torch.tensor([5])
WORDS, MASK_BP = torch.tensor([0, 4, -100, 2, 1, 0, 3, 3]), torch.rand(2, 4) < 0.3


def _normal(*shape: int, dtype: torch.dtype = F32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@dataclass
class Case:
    """An operator as a function of ``tensors``. ``casts``: the dtype each becomes, of those that change."""

    function: Callable
    tensors: tuple[torch.Tensor, ...]
    casts: dict[int, torch.dtype] = field(default_factory=dict)
    gives: torch.dtype = F32


def _embed(features_IPD, *rest):
    *parameters, text_NH = rest
    packed = kernels.PackedRows(text_NH, torch.tensor([0, 5]), torch.tensor([1, 6]), 10)
    return kernels.masked_patch_embed(
        features_IPD, MASK_BP, *parameters, feature_dropout=0.2, hidden_dropout=0.2, seed=SEED, packed=packed
    )


def _attention(qkv_T3H, bias_3H):
    return kernels.packed_attention(qkv_T3H, CU_SEQLENS, 2, max_seqlen=5, bias_3H=bias_3H, dropout=0.1, seed=SEED)


def _close(x_TH, residual_TH, weight_H, ln_bias_H, bias_H):
    rest = {"bias_H": bias_H, "dropout": 0.1, "seed": SEED}
    return kernels.dropout_add_layer_norm(x_TH, residual_TH, weight_H, ln_bias_H, **rest)


CASES = {
    "adaptive_loss": Case(lambda x: kernels.adaptive_loss(x)[0], (_normal(3),)),
    "bias_gelu": Case(kernels.bias_gelu, (_normal(8, 6), _normal(6)), {0: BF16, 1: BF16}, BF16),
    # what a model has: a matmul's result, the residual of a norm, parameters
    "dropout_add_layer_norm": Case(
        _close, (_normal(8, 6, dtype=BF16), _normal(8, 6), _normal(6), _normal(6), _normal(6)), {0: F32}
    ),
    "dropout_add_layer_norm, of a narrow model": Case(
        _close, tuple(_normal(*shape, dtype=BF16) for shape in ((8, 6), (8, 6), (6,), (6,), (6,))), {}, BF16
    ),
    "linear_cross_entropy": Case(
        lambda h, w, b: kernels.linear_cross_entropy(h, w, b, WORDS),
        (_normal(8, 6), _normal(5, 6), _normal(5)),
        dict.fromkeys(range(3), BF16),
    ),
    "linear_patch_kld": Case(  # the target stays as it is stored
        lambda h, w: kernels.linear_patch_kld(h, w, 9 * _normal(8, 5)),
        (_normal(8, 6), _normal(5, 6)),
        {0: BF16, 1: BF16},
    ),
    "masked_patch_embed": Case(  # as the features do
        _embed,
        (_normal(2, 4, 9), _normal(6, 9), _normal(4, 6), _normal(6), _normal(6), _normal(6), _normal(2, 6)),
        dict.fromkeys(range(1, 7), BF16),
        BF16,
    ),
    "min_norm_weights": Case(lambda x: kernels.min_norm_weights(x), (torch.eye(3),)),
    "packed_attention": Case(_attention, (_normal(8, 24), _normal(24)), {0: BF16, 1: BF16}, BF16),
    "patch_kld": Case(lambda x: kernels.patch_kld(x, _normal(8, 5)), (_normal(8, 5, dtype=BF16),)),
    "task_gradients": Case(lambda x: task_gram((x, x, x)), (_normal(4, 4),)),
    "task_gradients, mixed": Case(lambda x: task_mix((x, x, x), torch.ones(3)), (_normal(4, 4),)),
}


def test_no_operator_is_left_out():
    assert {name.split(",")[0] for name in CASES} == {operator.name for operator in OPERATORS}


def _run(case: Case, *, by_hand: bool) -> list[torch.Tensor]:
    """The result and the gradients of the tensors, under autocast or with the casts of the case."""
    leaves = [x.clone().requires_grad_() for x in case.tensors]
    if by_hand:
        result = case.function(*[x.to(case.casts.get(i, x.dtype)) for i, x in enumerate(leaves)])
    else:
        with torch.autocast("cpu", BF16):
            result = case.function(*leaves)
    if not result.requires_grad:  # weights are constants
        return [result]
    (result.float() * torch.arange(1.0, result.numel() + 1).view(result.shape)).sum().backward()
    return [result.detach(), *(x.grad for x in leaves)]


@pytest.mark.parametrize("name", CASES)
def test_equals_the_operator_on_tensors_cast_by_hand(name):
    case = CASES[name]
    ours, expected = _run(case, by_hand=False), _run(case, by_hand=True)
    assert ours[0].dtype == case.gives
    for gradient, x in zip(ours[1:], case.tensors, strict=False):
        assert gradient.dtype == x.dtype
    for mine, right in zip(ours, expected, strict=True):
        assert torch.equal(mine, right)


def test_without_autocast_nothing_is_cast():
    """Tensors of two dtypes are an error, as they are outside."""
    with torch.autocast("cpu", BF16), torch.autocast("cpu", enabled=False):
        assert kernels.bias_gelu(_normal(8, 6), _normal(6)).dtype == F32
        with pytest.raises(ValueError, match=r"bias_F has dtype torch\.bfloat16"):
            kernels.bias_gelu(_normal(8, 6), _normal(6, dtype=BF16))


def test_as_torchs_float64_is_left_alone_and_errors_are_the_same():
    with torch.autocast("cpu", BF16):
        assert kernels.bias_gelu(_normal(8, 6).double()).dtype == torch.float64
        for function, arguments in ((kernels.bias_gelu, (None,)), (kernels.dropout_add_layer_norm, (WORDS,) * 4)):
            with pytest.raises(ValueError, match="must be a float32"):
                function(*arguments)
        with pytest.raises(TypeError):
            kernels.bias_gelu(_normal(8, 6), _normal(6), 3)


def test_full_graph_compile_under_autocast():
    def step(x_TF, bias_F):
        with torch.autocast("cpu", BF16):
            return kernels.bias_gelu(x_TF, bias_F) * 2

    arguments = _normal(8, 6), _normal(6)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), step(*arguments))
