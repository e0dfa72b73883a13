"""linear_cross_entropy: random shapes against float64, gradients, ignored rows, blocks, registration, bad input.

Shapes: M masked tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from linear_cases import (
    assert_errs_at_most_twice,
    assert_same_bits_where_products_are_exact,
    loss_and_gradients,
)
from row_cases import NARROW, Picker

from fashionbert_fast.kernels import _linear_residual, linear_cross_entropy
from fashionbert_fast.kernels.linear_cross_entropy import linear_cross_entropy_reference

WIDTHS = (1, 2, 7, 16, 17, 100, 1023, 1024, 1025, 2048, 2600)  # around vectors and the CPU's chunk of 1024


def _case(dtype: torch.dtype, seed: int):
    pick = Picker(seed)
    M, H, V = pick((0, 1, 2, 5, 16)), pick((1, 3, 8, 33)), pick(WIDTHS)
    labels_M = torch.randint(V, (M,), generator=pick.generator)
    if M and pick((True, False)):
        labels_M[int(torch.randint(M, (), generator=pick.generator))] = -100
    hidden_MH, weight_VH = pick.matrix(M, H, dtype, pick((1e-2, 1.0, 8.0))), pick.matrix(V, H, dtype, H**-0.5)
    return (hidden_MH, weight_VH, pick.vector(V, dtype, pick((0.0, 1.0, 1e4)))), (labels_M,)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float64, *NARROW])
def test_random_shapes_err_at_most_twice_as_much_as_plain_pytorch(dtype):
    """100 cases a dtype: empty, one row, odd widths, strided, ignored rows, logits of 1e4."""
    results = []
    for seed in range(100):
        parameters, rest = _case(dtype, seed)
        exact = loss_and_gradients(linear_cross_entropy_reference, [p.double() for p in parameters], *rest)
        mine = loss_and_gradients(linear_cross_entropy, parameters, *rest)
        plain = loss_and_gradients(linear_cross_entropy_reference, parameters, *rest)
        for result, parameter in zip(mine[1:], parameters, strict=True):
            assert result.dtype == dtype and result.shape == parameter.shape and result.isfinite().all()
        results.append((mine, plain, exact))
    assert_errs_at_most_twice(results, floor=1e-9 if dtype == torch.float64 else 1e-6)


def test_without_bias_and_in_blocks(monkeypatch):
    parameters, labels_M = (torch.randn(37, 24), torch.randn(50, 24)), torch.randint(50, (37,))

    def run(hidden_MH, weight_VH):
        return linear_cross_entropy(hidden_MH, weight_VH, None, labels_M)

    whole = loss_and_gradients(run, parameters)
    torch.testing.assert_close(whole[0], F.cross_entropy(parameters[0] @ parameters[1].T, labels_M))
    monkeypatch.setitem(_linear_residual.BLOCK_ROWS, "cpu", 8)
    for a, b in zip(whole, loss_and_gradients(run, parameters), strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(run(*parameters), whole[0])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reduction_is_torchs(reduction):
    """Ignored rows count for nothing in the mean either; where none counts it is 0, torch's NaN."""
    hidden_MH, weight_VH, labels_M = torch.randn(5, 8), torch.randn(12, 8), torch.tensor([4, -100, 0, -100, 6])
    expected = F.cross_entropy(hidden_MH @ weight_VH.T, labels_M, reduction=reduction)
    for function in (linear_cross_entropy, linear_cross_entropy_reference):
        torch.testing.assert_close(function(hidden_MH, weight_VH, None, labels_M, reduction=reduction), expected)
        assert function(hidden_MH, weight_VH, None, labels_M.clamp_max(-100), reduction=reduction) == 0
        assert function(hidden_MH[:0], weight_VH, None, labels_M[:0], reduction=reduction) == 0


def test_logits_as_wide_as_a_vocabulary_go_in_blocks_of_their_own(monkeypatch):
    monkeypatch.setitem(_linear_residual.BLOCK_ROWS_OF_WIDE, "cpu", 8)
    parameters = torch.randn(20, 5), torch.randn(_linear_residual.WIDE, 5), torch.randn(_linear_residual.WIDE)
    labels_M = torch.randint(_linear_residual.WIDE, (20,))
    mine = loss_and_gradients(linear_cross_entropy, parameters, labels_M)
    for a, b in zip(mine, loss_and_gradients(linear_cross_entropy_reference, parameters, labels_M), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", NARROW)
def test_same_bits_on_any_number_of_threads_where_products_are_exact(dtype):
    parameters = [torch.randn(shape).to(dtype) for shape in ((300, 64), (500, 64), (500,))]
    operator = torch.ops.fashionbert_fast.linear_cross_entropy
    assert_same_bits_where_products_are_exact(operator, parameters, torch.randint(500, (300,)))


def test_gradcheck():
    hidden_MH, weight_VH = (torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in (3, 5))
    bias_V = torch.randn(5, dtype=torch.float64, requires_grad=True)
    labels_M = torch.tensor([1, -100, 4])
    assert torch.autograd.gradcheck(
        lambda h, w, b: linear_cross_entropy(h, w, b, labels_M), (hidden_MH, weight_VH, bias_V)
    )


def test_opcheck():
    op = torch.ops.fashionbert_fast.linear_cross_entropy.default
    for dtype in (torch.float64, *NARROW):
        parameters = [torch.randn(n, 8, dtype=dtype, requires_grad=True) for n in (4, 9)]
        bias_V = torch.randn(9, dtype=dtype, requires_grad=True)
        labels_M = torch.tensor([0, 8, -100, 3])
        torch.library.opcheck(op, (*parameters, bias_V, labels_M, True))
        torch.library.opcheck(op, (*[p.detach() for p in parameters], None, labels_M, False))
    residual_ = torch.ops.fashionbert_fast.cross_entropy_residual_.default
    torch.library.opcheck(residual_, (torch.randn(2, 9), torch.randn(9), torch.tensor([1, 8])))


def test_rows_that_start_aligned_change_nothing(monkeypatch):
    """As on a GPU, where 30,522 columns would otherwise leave most rows off any 16-byte boundary."""
    parameters = (torch.randn(9, 16).bfloat16(), torch.randn(37, 16).bfloat16(), torch.randn(37).bfloat16())
    labels_M = torch.randint(37, (9,))
    plain = loss_and_gradients(linear_cross_entropy, parameters, labels_M)
    monkeypatch.setattr(_linear_residual, "ALIGNED_ON", ("cpu",))
    aligned = loss_and_gradients(linear_cross_entropy, parameters, labels_M)
    assert all(torch.equal(a, b) for a, b in zip(aligned, plain, strict=True))
    _, residual_MV = torch.ops.fashionbert_fast.linear_cross_entropy(*parameters, labels_M, True)
    assert residual_MV.stride() == (40, 1) and residual_MV.data_ptr() % 16 == 0
    torch.library.opcheck(
        torch.ops.fashionbert_fast.linear_cross_entropy.default,
        (*(p.requires_grad_() for p in parameters), labels_M, True), test_utils=("test_schema", "test_faketensor"),
    )  # fmt: skip


def test_the_scale_of_the_loss_is_not_rounded_before_it_is_multiplied():
    """By 0.2% in bfloat16: on a GPU the scale is a tensor, which torch would cast to the gradient's dtype first."""
    gradient_MH, scale = torch.randn(40, 30).bfloat16(), torch.tensor(1 + 2**-9 + 2**-11)
    exact_MH = (gradient_MH.float() * scale).bfloat16()
    assert torch.equal(_linear_residual.scaled_(gradient_MH.clone(), scale), exact_MH)
    assert not torch.equal(gradient_MH * scale.bfloat16(), exact_MH)


def test_full_graph_compile():
    def step(hidden_MH, weight_VH, bias_V, labels_M):
        return linear_cross_entropy(hidden_MH * 2, weight_VH, bias_V, labels_M) * 3

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    labels_M = torch.tensor([1, 5, 2])
    for dtype in (torch.float32, torch.bfloat16):
        parameters = (torch.randn(3, 6, dtype=dtype), torch.randn(17, 6, dtype=dtype), torch.randn(17, dtype=dtype))
        ours, theirs = (loss_and_gradients(f, parameters, labels_M) for f in (compiled, step))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"hidden_MH": torch.randn(3)}, "hidden_MH"),
        ({"hidden_MH": torch.ones(3, 4, dtype=torch.int64)}, "hidden_MH"),
        ({"weight_VH": torch.randn(5, 3)}, "weight_VH"),
        ({"weight_VH": torch.randn(5, 4).bfloat16()}, "weight_VH"),
        ({"weight_VH": torch.randn(0, 4)}, "weight_VH"),
        ({"bias_V": torch.randn(4)}, "bias_V"),
        ({"bias_V": torch.randn(5).half()}, "bias_V"),
        ({"labels_M": torch.zeros(2, dtype=torch.int64)}, "labels_M"),
        ({"labels_M": torch.zeros(3)}, "labels_M"),
        ({"reduction": "none"}, "reduction"),
    ],
)
def test_bad_arguments_are_named(change, argument):
    arguments = {
        "hidden_MH": torch.randn(3, 4),
        "weight_VH": torch.randn(5, 4),
        "bias_V": None,
        "labels_M": torch.zeros(3, dtype=torch.int64),
    } | change
    with pytest.raises(ValueError, match=argument):
        linear_cross_entropy(**arguments)


@pytest.mark.parametrize("label", [-1, 5])
def test_a_label_out_of_range_is_refused(label):
    with pytest.raises(RuntimeError, match=rf"labels\[1\] is {label} but there are 5 classes"):
        linear_cross_entropy(torch.randn(2, 4), torch.randn(5, 4), None, torch.tensor([0, label]))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", NARROW)
def test_cuda_matches_reference(dtype):
    results = []
    for seed in range(100):
        parameters, (labels_M,) = _case(dtype, seed)
        exact = loss_and_gradients(linear_cross_entropy_reference, [p.double() for p in parameters], labels_M)
        parameters, labels_M = [p.cuda() for p in parameters], labels_M.cuda()
        mine = loss_and_gradients(linear_cross_entropy, parameters, labels_M)
        plain = loss_and_gradients(linear_cross_entropy_reference, parameters, labels_M)
        results.append(([x.cpu() for x in mine], [x.cpu() for x in plain], exact))
    assert_errs_at_most_twice(results, floor=1e-6)


@pytest.mark.gpu
def test_cuda_label_out_of_range_gives_nan():
    loss = linear_cross_entropy(
        torch.randn(2, 8, device="cuda"), torch.randn(9, 8, device="cuda"), None, torch.tensor([0, 9], device="cuda")
    )
    assert loss.isnan()
