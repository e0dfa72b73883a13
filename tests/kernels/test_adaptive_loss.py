"""adaptive_loss: golden values of docs' formula, the reference, gradients, registration, bad input."""

from __future__ import annotations

import pytest
import torch
from row_cases import allowed_error

from fashionbert_fast.kernels import adaptive_loss
from fashionbert_fast.kernels.adaptive_loss import adaptive_loss_reference

OP = torch.ops.fashionbert_fast.adaptive_loss.default
# dtype -> (atol, rtol) against float64: one rounding of the output
TOLERANCES = {
    torch.float64: (1e-14, 1e-14),
    torch.float32: (1e-6, 1e-6),
    torch.bfloat16: (1e-3, 8e-3),
    torch.float16: (1e-4, 1e-3),
}
GOLDEN = [  # FashionBERT specification, float64
    ([7.0, 0.7, 0.05], [0.42789072, 0.28605476, 0.28605452]),
    ([2.0, 2.0, 2.0], [1 / 3, 1 / 3, 1 / 3]),
    ([1.2, 0.4, 2.5], [0.31435017, 0.31115008, 0.37449975]),
]


@pytest.mark.parametrize(("losses", "weights"), GOLDEN)
@pytest.mark.parametrize("function", [adaptive_loss, adaptive_loss_reference])
def test_golden_values(function, losses, weights):
    losses_T = torch.tensor(losses, dtype=torch.float64)
    loss, weights_T = function(losses_T)
    torch.testing.assert_close(weights_T, torch.tensor(weights, dtype=torch.float64), atol=5e-9, rtol=0)
    torch.testing.assert_close(loss, (weights_T * losses_T).sum())


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("tasks", [2, 3, 4, 8])  # fewest with alpha 1, ours, with a contrastive loss, the most
def test_matches_reference(dtype, tasks):
    generator = torch.Generator().manual_seed(tasks)
    atol, rtol = TOLERANCES[dtype]
    for scale in (1e-3, 1.0, 10.0, 1e4):  # 1e4: softmax saturates, nothing may overflow
        losses_T = (torch.rand(tasks, generator=generator, dtype=torch.float64) * scale).to(dtype)
        ours = losses_T.clone().requires_grad_()
        exact = losses_T.double().requires_grad_()
        loss, weights_T = adaptive_loss(ours)
        exact_loss, exact_weights_T = adaptive_loss_reference(exact)
        (loss * 2).backward()
        (exact_loss * 2).backward()
        assert loss.dtype == weights_T.dtype == dtype
        torch.testing.assert_close(loss.double(), exact_loss, atol=atol * scale, rtol=rtol)
        torch.testing.assert_close(weights_T.double(), exact_weights_T, atol=atol, rtol=rtol)
        torch.testing.assert_close(ours.grad.double(), exact.grad, atol=atol * max(scale, 1.0), rtol=rtol)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_at_most_twice_plain_pytorch(dtype):
    generator = torch.Generator().manual_seed(0)
    ours, plain = [], []
    for _ in range(300):
        losses_T = (torch.rand(3, generator=generator, dtype=torch.float64) * 8).to(dtype)
        exact = adaptive_loss_reference(losses_T.double())[1]
        ours.append((adaptive_loss(losses_T)[1].double() - exact).abs().max())
        plain.append((adaptive_loss_reference(losses_T)[1].double() - exact).abs().max())
    assert torch.stack(ours).max() <= max(2 * torch.stack(plain).max(), allowed_error(dtype))


def test_gradcheck_of_both_outputs():
    losses_T = torch.tensor([1.2, 0.4, 2.5], dtype=torch.float64, requires_grad=True)
    for alpha in (0.5, 1.0, 3.0):
        assert torch.autograd.gradcheck(lambda x, a=alpha: adaptive_loss(x, alpha=a), (losses_T,))


@pytest.mark.parametrize("uses", ["loss", "weights", "both", "loss twice"])
def test_gradient_of_whichever_output_is_used(uses):
    direction_T = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    combine = {
        "loss": lambda loss, weights_T: loss,
        "weights": lambda loss, weights_T: weights_T @ direction_T,
        "both": lambda loss, weights_T: 2 * loss + weights_T @ direction_T,
        "loss twice": lambda loss, weights_T: loss * loss,
    }[uses]
    ours = torch.tensor([1.2, 0.4, 2.5], dtype=torch.float64, requires_grad=True)
    exact = ours.detach().clone().requires_grad_()
    combine(*adaptive_loss(ours)).backward()
    combine(*adaptive_loss_reference(exact)).backward()
    torch.testing.assert_close(ours.grad, exact.grad, atol=1e-14, rtol=1e-13)


def test_without_grad_nothing_is_recorded():
    losses_T = torch.rand(3, requires_grad=True)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            loss, weights_T = adaptive_loss(losses_T)
        assert not loss.requires_grad
        assert not weights_T.requires_grad


def test_strided_and_detached():
    losses_T = torch.tensor([1.2, 9.0, 0.4, 9.0, 2.5], dtype=torch.float64)[::2].requires_grad_()
    loss, weights_T = adaptive_loss(losses_T, detach_weights=True)
    (gradient,) = torch.autograd.grad(loss, losses_T)
    torch.testing.assert_close(weights_T, torch.tensor(GOLDEN[2][1], dtype=torch.float64), atol=5e-9, rtol=0)
    torch.testing.assert_close(gradient, weights_T)
    assert not weights_T.requires_grad


def test_nan_and_infinity_are_not_hidden():
    assert adaptive_loss(torch.tensor([1.0, float("nan"), 2.0]))[0].isnan()
    assert not adaptive_loss(torch.tensor([1.0, float("inf"), 2.0]))[0].isfinite()


def test_opcheck():
    for dtype in TOLERANCES:
        for detach in (False, True):
            losses_T = torch.rand(3, dtype=dtype, requires_grad=True)
            torch.library.opcheck(OP, (losses_T, 1.0, detach))
    torch.library.opcheck(OP, (torch.rand(6)[::2], 1.0, False))


@pytest.mark.parametrize("detach", [False, True])
def test_full_graph_compile(detach):
    def function(losses_T):
        loss, weights_T = adaptive_loss(losses_T * 2, detach_weights=detach)
        return loss, weights_T * 3

    losses_T = torch.rand(3, requires_grad=True)
    other = losses_T.detach().clone().requires_grad_()
    outputs = torch.compile(function, fullgraph=True, backend="aot_eager")(losses_T)
    expected = function(other)
    for ours, eager in zip(outputs, expected, strict=True):
        torch.testing.assert_close(ours, eager)
        assert ours.requires_grad == eager.requires_grad
    outputs[0].backward()
    expected[0].backward()
    torch.testing.assert_close(losses_T.grad, other.grad)


@pytest.mark.parametrize(
    ("losses", "kwargs", "argument"),
    [
        (torch.rand(2, 2), {}, "losses_T"),
        (torch.rand(9), {}, "losses_T"),
        (torch.rand(0), {}, "losses_T"),
        (torch.ones(3, dtype=torch.int64), {}, "losses_T"),
        (torch.rand(3), {"alpha": 1 / 3}, "alpha"),
        (torch.rand(1), {}, "alpha"),
    ],
)
def test_bad_arguments_are_named(losses, kwargs, argument):
    with pytest.raises(ValueError, match=argument):
        adaptive_loss(losses, **kwargs)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cuda_matches_reference(dtype):
    for losses, _ in GOLDEN:
        losses_T = torch.tensor(losses, dtype=dtype, device="cuda", requires_grad=True)
        exact = losses_T.detach().double().requires_grad_()
        loss, weights_T = adaptive_loss(losses_T)
        exact_loss, exact_weights_T = adaptive_loss_reference(exact)
        loss.backward()
        exact_loss.backward()
        atol, rtol = TOLERANCES[dtype]
        torch.testing.assert_close(loss.double(), exact_loss, atol=10 * atol, rtol=rtol)
        torch.testing.assert_close(weights_T.double(), exact_weights_T, atol=atol, rtol=rtol)
        torch.testing.assert_close(losses_T.grad.double(), exact.grad, atol=10 * atol, rtol=rtol)
