"""linear_fork: the residual's gradient and the matmul's are summed by the matmul, over nothing that anyone holds."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fashionbert_fast.kernels import dropout_add_layer_norm
from fashionbert_fast.kernels._library import NATIVE_AUTOGRAD
from fashionbert_fast.kernels._linear_fork import linear_fork

T, K, N = 7, 16, 24
native = pytest.mark.skipif(not NATIVE_AUTOGRAD, reason="the build is for another torch: autograd sums")


class _Seen(TorchDispatchMode):
    """Operators called while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def _leaves(dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_TK, weight_NK = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((T, K), (N, K)))
    return x_TK.to(dtype).requires_grad_(), weight_NK.to(dtype).requires_grad_()


def _loss(fork, x_TK, weight_NK) -> torch.Tensor:
    product_TN, residual_TK = fork(x_TK, weight_NK)
    return product_TN.double().sin().sum() + residual_TK.double().square().sum()


def _plain(x_TK, weight_NK):
    return F.linear(x_TK, weight_NK), x_TK


def test_gradcheck():
    leaves = _leaves()
    assert torch.autograd.gradcheck(linear_fork, leaves)
    assert torch.autograd.gradgradcheck(linear_fork, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_against_float64_is_no_more_than_autograds(dtype):
    exact = torch.autograd.grad(_loss(_plain, *(leaves64 := [leaf.double() for leaf in _leaves(dtype)])), leaves64)
    for mine, theirs, right in zip(
        torch.autograd.grad(_loss(linear_fork, *(leaves := _leaves(dtype))), leaves),
        torch.autograd.grad(_loss(_plain, *leaves), leaves), exact, strict=True,
    ):  # fmt: skip
        error, allowed = ((grad.double() - right).abs().max().item() for grad in (mine, theirs))
        assert error <= 2 * allowed + torch.finfo(dtype).eps * right.abs().max().item()


def test_only_one_of_the_two_is_used():
    x_TK, weight_NK = _leaves()
    product_TN, residual_TK = linear_fork(x_TK, weight_NK)
    (of_residual,) = torch.autograd.grad(residual_TK.square().sum(), x_TK, retain_graph=True)
    torch.testing.assert_close(of_residual, 2 * x_TK)
    of_product = torch.autograd.grad(product_TN.sum(), (x_TK, weight_NK))
    torch.testing.assert_close(of_product[0], weight_NK.sum(0).expand(T, K))
    torch.testing.assert_close(of_product[1], x_TK.sum(0).expand(N, K))


def test_what_needs_no_gradient_gets_none():
    x_TK, weight_NK = _leaves()
    assert not linear_fork(x_TK.detach(), weight_NK.detach())[0].requires_grad
    (of_weight,) = torch.autograd.grad(linear_fork(x_TK.detach(), weight_NK)[0].sum(), weight_NK)
    torch.testing.assert_close(of_weight, x_TK.sum(0).expand(N, K))
    with torch.no_grad():
        product_TN, residual_TK = linear_fork(x_TK, weight_NK)
    assert not product_TN.requires_grad
    torch.testing.assert_close(residual_TK, x_TK)


def _closed(x_TK, weight_NK, dropout: float = 0.1) -> torch.Tensor:
    """A residual's half of a layer: its closing operator makes the gradient that is added to."""
    product_TN, residual_TK = linear_fork(x_TK * 1, weight_NK)
    one_K = torch.ones(K, dtype=x_TK.dtype)
    seed = torch.tensor([3])
    branch_TK = torch.tanh(product_TN[:, :K])
    return dropout_add_layer_norm(branch_TK, residual_TK, one_K, one_K, dropout=dropout, seed=seed)


@native
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_matmul_sums(dropout):
    leaves = _leaves()
    with _Seen() as seen:
        _closed(*leaves, dropout=dropout).square().sum().backward()
    assert seen.names.count("aten::addmm_") == 1
    assert not [name for name in seen.names if name.startswith("aten::add.") or name in ("aten::add", "aten::add_")]


@native
def test_a_gradient_that_someone_holds_is_left_alone():
    x_TK, weight_NK = _leaves()
    held: list[torch.Tensor] = []
    product_TN, residual_TK = linear_fork(x_TK, weight_NK)
    residual_TK.register_hook(lambda grad: held.append(grad))
    (product_TN.sum() + residual_TK.square().sum()).backward()
    torch.testing.assert_close(held[0], 2 * x_TK)
    torch.testing.assert_close(x_TK.grad, 2 * x_TK + weight_NK.sum(0))


def test_two_backwards_of_one_graph_agree():
    leaves = _leaves()
    loss = _closed(*leaves).square().sum()
    first, second = (torch.autograd.grad(loss, leaves, retain_graph=True) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_batched_gradients():
    leaves = _leaves()
    product_TN, residual_TK = linear_fork(*leaves)
    grads = [torch.randn(3, *out.shape, dtype=torch.float64) for out in (product_TN, residual_TK)]
    both = product_TN, residual_TK
    batched = torch.autograd.grad(both, leaves, grads, retain_graph=True, is_grads_batched=True)
    for i in range(3):
        alone = torch.autograd.grad(both, leaves, [grad[i] for grad in grads], retain_graph=True)
        for a, b in zip(batched, alone, strict=True):
            torch.testing.assert_close(a[i], b)


def test_under_autocast_as_linear_does():
    x_TK, weight_NK = _leaves(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        product_TN, residual_TK = linear_fork(x_TK, weight_NK)
    assert product_TN.dtype == torch.bfloat16
    assert residual_TK.dtype == torch.float32


def test_traced_for_compilation():
    leaves = _leaves(torch.float32)
    compiled = torch.compile(_closed, backend="aot_eager", fullgraph=True)
    mine = torch.autograd.grad(compiled(*leaves).square().sum(), leaves)
    for a, b in zip(mine, torch.autograd.grad(_closed(*leaves).square().sum(), leaves), strict=True):
        torch.testing.assert_close(a, b)
