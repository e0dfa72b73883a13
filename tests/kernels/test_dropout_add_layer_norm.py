"""dropout_add_layer_norm: random shapes against float64, its mask, gradients, Triton, registration, bad input.

Shapes: T tokens, H hidden.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from row_cases import NARROW, Picker, allowed_error, check_as_exact, poison, relative_errors

from fashionbert_fast.kernels import dropout_add_layer_norm
from fashionbert_fast.kernels.dropout import keep_reference, scale_of
from fashionbert_fast.kernels.dropout_add_layer_norm import dropout_add_layer_norm_reference

OP = torch.ops.fashionbert_fast.dropout_add_layer_norm.default
# around vectors and the dropout's block of 128; at widths 1 and 2 the gradient is nothing but rounding
WIDTHS = (0, 3, 7, 16, 17, 33, 100, 127, 128, 129, 255, 300, 768)
HEIGHTS = (0, 1, 2, 31, 32, 33, 70)  # around the 32 rows that share their sums
SCALES = (1e-2, 1.0, 100.0)
DROPOUTS = (0.0, 0.0, 0.1, 0.5)


def _case(dtype: torch.dtype, seed: int):
    """A random problem: x, residual, ln_weight, ln_bias, bias or None, the incoming gradient; and the options."""
    pick = Picker(seed)
    T, H, scale = pick(HEIGHTS), pick(WIDTHS), pick(SCALES)
    x_TH, residual_TH = (pick.matrix(T, H, dtype, scale) for _ in range(2))
    weight_H, ln_bias_H = (pick.vector(H, dtype) for _ in range(2))
    bias_H = pick.vector(H, dtype, scale) if pick((False, True, True)) else None
    grad_TH = pick.matrix(T, H, dtype, pick((1e-2, 1.0)))
    options = {"dropout": pick(DROPOUTS), "eps": pick((1e-12, 1e-5)), "site": pick((0, 5, 2**31 - 1))}
    options["seed"] = torch.tensor([pick((1, 2**61 + 987654321987, -3))])
    return (x_TH, residual_TH, weight_H, ln_bias_H, bias_H, grad_TH), options


def _run(function, x_TH, residual_TH, weight_H, ln_bias_H, bias_H, grad_TH, **options):
    """The result and the gradients of x, residual, ln_weight, ln_bias and, where there is one, of bias."""
    inputs = [x.detach().requires_grad_() for x in (x_TH, residual_TH, weight_H, ln_bias_H, bias_H) if x is not None]
    y_TH = function(*inputs[:4], bias_H=inputs[4] if bias_H is not None else None, **options)
    return [y_TH.detach(), *torch.autograd.grad(y_TH, inputs, grad_TH)]


def _double(tensors):
    return [None if x is None else x.double() for x in tensors]


def _check_as_exact_as_plain(dtype: torch.dtype, cases: int, run_ours, factor: float = 2.0) -> None:
    """Errors of the result and of every gradient, over the first ``cases`` cases."""
    ours, plain = [], []
    for seed in range(cases):
        tensors, options = _case(dtype, seed)
        (T, H), blocks = tensors[0].shape, -(-tensors[0].shape[0] // 32)
        exact = _run(dropout_add_layer_norm_reference, *_double(tensors), **options)
        poison((T, H), (H,), (T, 2), (blocks, 3 * H), (T, 3, H))
        mine = run_ours(*tensors, **options)
        theirs = _run(dropout_add_layer_norm_reference, *tensors, **options)
        for result, exactly in zip(mine, exact, strict=True):
            assert result.dtype == dtype and result.shape == exactly.shape and result.is_contiguous()
            assert result.isfinite().all()
        padding = [0.0] * (tensors[4] is None)
        ours.append(relative_errors(mine, exact) + padding)
        plain.append(relative_errors(theirs, exact) + padding)
    # in float64 plain PyTorch is its own oracle
    check_as_exact(
        ours, plain, floor=1e-11 if dtype == torch.float64 else 0.0, factor=factor, allowed=allowed_error(dtype)
    )


@pytest.mark.parametrize("dtype", [torch.float64, *NARROW])
def test_random_shapes_err_at_most_twice_as_much_as_plain_pytorch(dtype):
    """100 cases a dtype: empty, one row, odd widths, strided, with and without bias and dropout."""
    _check_as_exact_as_plain(dtype, 100, lambda *tensors, **options: _run(dropout_add_layer_norm, *tensors, **options))


def test_width_one_and_constant_rows_give_the_bias():
    """Their variance is 0: what remains of a row is ln_bias, whatever eps."""
    weight_H, ln_bias_H = torch.randn(2, 8)
    for x_TH in (torch.full((3, 8), 1e4), torch.zeros(3, 8), torch.full((3, 8), -0.5)):
        y_TH = dropout_add_layer_norm(x_TH, torch.zeros(3, 8), weight_H, ln_bias_H)
        assert torch.equal(y_TH, ln_bias_H.expand(3, 8))
    x_TH = torch.randn(5, 1)
    y_TH, *grads = _run(dropout_add_layer_norm, x_TH, x_TH, weight_H[:1], ln_bias_H[:1], None, torch.ones(5, 1))
    assert torch.equal(y_TH, ln_bias_H[:1].expand(5, 1)) and all(grad.isfinite().all() for grad in grads)


def test_rows_far_from_zero_keep_their_shape():
    """Mean 1000 times the deviation: the backward does not start from a rounded sum."""
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float16):
        x_TH, residual_TH, grad_TH = torch.randn(6, 64), torch.randn(6, 64) + 1000, torch.randn(6, 64)
        tensors = [x.to(dtype) for x in (x_TH, residual_TH, torch.ones(64), torch.zeros(64), torch.zeros(64), grad_TH)]
        exact = _run(dropout_add_layer_norm_reference, *_double(tensors))
        errors = [
            relative_errors(_run(f, *tensors), exact)
            for f in (dropout_add_layer_norm, dropout_add_layer_norm_reference)
        ]
        assert all(mine <= 2 * plain for mine, plain in zip(*errors, strict=True)), errors


def test_mask_is_the_generators_and_the_gradient_has_its_holes():
    """LayerNorm undone: with no residual a dropped element is where the sum is 0."""
    T, H, seed = 40, 300, torch.tensor([987654321])
    x_TH = torch.rand(T, H) + 1
    result = _run(dropout_add_layer_norm, x_TH, torch.zeros(T, H), torch.ones(H), torch.zeros(H), None,
                  torch.randn(T, H), dropout=0.25, seed=seed, site=7)  # fmt: skip
    keep_TH = keep_reference(987654321, 7, torch.arange(T), H, 0.25)
    assert torch.equal(result[0] > result[0].amin(1, keepdim=True), keep_TH)
    assert torch.equal(result[1] != 0, keep_TH)
    torch.testing.assert_close(result[1], result[2] * keep_TH * scale_of(0.25), atol=0, rtol=2e-7)


def test_dropping_everything_leaves_the_residual():
    x_TH, residual_TH, grad_TH = torch.randn(3, 4, 20)
    ones_H, zeros_H = torch.ones(20), torch.zeros(20)
    result = _run(dropout_add_layer_norm, x_TH, residual_TH, ones_H, zeros_H, zeros_H, grad_TH, dropout=1.0,
                  seed=torch.tensor([1]))  # fmt: skip
    expected = _run(dropout_add_layer_norm, x_TH * 0, residual_TH, ones_H, zeros_H, zeros_H, grad_TH)
    torch.testing.assert_close(result[0], expected[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(result[2], expected[2], rtol=1e-6, atol=1e-6)
    assert not result[1].any() and not result[5].any()


def test_shared_gradient_survives_accumulation():
    """Without dropout x and residual get one tensor: adding to either, or using one input twice, keeps both right."""
    for dropout, seed in ((0.0, None), (0.3, torch.tensor([5]))):
        a_TH, b_TH = torch.randn(2, 6, 30)
        one, other = a_TH.clone().requires_grad_(), b_TH.clone().requires_grad_()
        twin, twin_other = (x.double().requires_grad_() for x in (a_TH, b_TH))
        for function, x, y in (
            (dropout_add_layer_norm, one, other),
            (dropout_add_layer_norm_reference, twin, twin_other),
        ):
            ones_H, zeros_H = torch.linspace(1, 2, 30).to(x.dtype), torch.zeros(30, dtype=x.dtype)
            for _ in range(2):
                middle = function(x * 2, y, ones_H, zeros_H, dropout=dropout, seed=seed)
                (
                    function(middle, middle, ones_H, zeros_H, dropout=dropout, seed=seed, site=1) ** 3 + x
                ).sum().backward()
        torch.testing.assert_close(one.grad.double(), twin.grad, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(other.grad.double(), twin_other.grad, atol=1e-3, rtol=1e-4)
        assert one.grad.data_ptr() != other.grad.data_ptr()


@pytest.mark.parametrize("dtype", NARROW)
def test_nan_is_not_hidden_and_stays_in_its_row(dtype):
    for column in (0, 15, 16, 36):
        x_TH = torch.randn(2, 37, dtype=dtype)
        x_TH[1, column] = float("nan")
        ones_H, zeros_H = torch.ones(37, dtype=dtype), torch.zeros(37, dtype=dtype)
        result = _run(dropout_add_layer_norm, x_TH, x_TH.nan_to_num(), ones_H, zeros_H, None, torch.ones_like(x_TH))
        for rows_TH in result[:3]:
            assert rows_TH[1].isnan().all() and rows_TH[0].isfinite().all()
        assert result[3].isnan().all()


def test_same_bits_on_any_number_of_threads():
    tensors = [torch.randn(300, 200), torch.randn(300, 200), *torch.randn(3, 200), torch.randn(300, 200)]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(_run(dropout_add_layer_norm, *tensors, dropout=0.1, seed=torch.tensor([3])))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0], strict=True))


def _bound(seed=None, **options):
    """The operator over positional tensors, as gradcheck wants it."""
    return lambda x, residual, weight, ln_bias, bias=None: dropout_add_layer_norm(
        x, residual, weight, ln_bias, bias_H=bias, seed=seed, **options
    )


def test_gradcheck():
    tensors = [
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 5), (3, 5), (5,), (5,), (5,))
    ]
    for count in (4, 5):
        assert torch.autograd.gradcheck(_bound(), tensors[:count])
        assert torch.autograd.gradcheck(_bound(torch.tensor([3]), dropout=0.4, site=2), tensors[:count])


def test_opcheck():
    seed = torch.tensor([11])
    for dtype in (torch.float64, *NARROW):
        x_TH, residual_TH = torch.randn(2, 4, 9).to(dtype)
        bias_H, weight_H, ln_bias_H = torch.randn(3, 9).to(dtype)
        for tensor in (x_TH, residual_TH, bias_H, weight_H, ln_bias_H):
            tensor.requires_grad_()
        torch.library.opcheck(OP, (x_TH, residual_TH, bias_H, weight_H, ln_bias_H, 1e-12, 0.3, seed, 1))
        torch.library.opcheck(OP, (x_TH, residual_TH, None, weight_H, ln_bias_H, 1e-12, 0.0, None, 0))
    strided_TH, vector_H = torch.randn(9, 4).T, torch.randn(18)[::2]
    torch.library.opcheck(OP, (strided_TH, strided_TH.clone(), vector_H, vector_H, vector_H, 1e-5, 0.3, seed, 1))
    empty_TH = torch.randn(0, 9, requires_grad=True)
    torch.library.opcheck(OP, (empty_TH, torch.randn(0, 9), vector_H, vector_H, vector_H, 1e-5, 0.3, seed, 1))


def test_full_graph_compile():
    def step(x_TH, residual_TH, weight_H, ln_bias_H, bias_H=None, **options):
        return dropout_add_layer_norm(x_TH * 2, residual_TH, weight_H, ln_bias_H, bias_H=bias_H, **options) * 3

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for dtype in (torch.float32, torch.bfloat16):
        tensors = [torch.randn(3, 17), torch.randn(3, 17), *torch.randn(3, 17), torch.randn(3, 17)]
        tensors = [tensor.to(dtype) for tensor in tensors]
        for options in ({}, {"dropout": 0.3, "seed": torch.tensor([4])}):
            for ours, eager in zip(_run(compiled, *tensors, **options), _run(step, *tensors, **options), strict=True):
                assert torch.equal(ours, eager)


GOOD = {
    "x_TH": torch.randn(3, 4),
    "residual_TH": torch.randn(3, 4),
    "ln_weight_H": torch.randn(4),
    "ln_bias_H": torch.randn(4),
    "bias_H": torch.randn(4),
    "dropout": 0.5,
    "seed": torch.tensor([1]),
}


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("x_TH", torch.randn(4)),
        ("x_TH", torch.ones(3, 4, dtype=torch.int64)),
        ("residual_TH", torch.randn(4, 3)),
        ("residual_TH", torch.randn(3, 4).double()),
        ("residual_TH", torch.randn(3, 4, device="meta")),
        ("ln_weight_H", torch.randn(3)),
        ("ln_weight_H", torch.randn(4).half()),
        ("ln_bias_H", torch.randn(1, 4)),
        ("ln_bias_H", None),
        ("bias_H", torch.randn(3, 4)),
        ("bias_H", torch.randn(4).bfloat16()),
        ("eps", -1e-5),
        ("eps", float("nan")),
        ("dropout", 1.5),
        ("dropout", -0.1),
        ("seed", None),
        ("seed", torch.tensor(1)),
        ("seed", torch.tensor([1.0])),
        ("seed", torch.ones(1, dtype=torch.int64, device="meta")),
        ("site", -1),
        ("site", 2**31),
    ],
)
def test_bad_arguments_are_named(argument, value):
    with pytest.raises(ValueError, match=argument):
        dropout_add_layer_norm(**(GOOD | {argument: value}))


# Triton, in its interpreter on this CPU: this file run as a program --------------------------------------------------
def _launch(x_TH, residual_TH, weight_H, ln_bias_H, bias_H, grad_TH, *, dropout, eps, site, seed):
    from fashionbert_fast.kernels.triton.dropout_add_layer_norm import launch_backward, launch_forward

    y_TH, stats_T2 = launch_forward(x_TH, residual_TH, bias_H, weight_H, ln_bias_H, eps, dropout, seed, site)
    grad_x_TH, grad_residual_TH, grad_bias_H, *grads = launch_backward(
        grad_TH, x_TH, residual_TH, bias_H, weight_H, stats_T2, dropout, seed, site
    )
    if dropout == 0:
        assert grad_x_TH.shape == (0,)
        grad_x_TH = grad_residual_TH
    return [y_TH, grad_x_TH, grad_residual_TH, *grads] + ([] if bias_H is None else [grad_bias_H])


def test_triton_in_the_interpreter():
    """12 of the cases a dtype, through the launchers."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, __file__], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", NARROW)
def test_cuda_matches_reference(dtype):
    """The CPU's cases, on the GPU: as exact, and the same bits twice."""

    def run(*tensors, seed, **options):
        on_gpu = [None if x is None else x.cuda() for x in tensors]
        result, again = (_run(dropout_add_layer_norm, *on_gpu, seed=seed.cuda(), **options) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(result, again, strict=True))
        return [x.cpu() for x in result]

    _check_as_exact_as_plain(dtype, 100, run)


if __name__ == "__main__":
    for dtype in NARROW:
        # the interpreter cuts bfloat16 off where a GPU rounds
        _check_as_exact_as_plain(dtype, 12, _launch, factor=4.0 if dtype == torch.bfloat16 else 2.0)
