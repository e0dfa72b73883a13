"""linear_patch_kld: random shapes against float64, gradients, gathering, ignored rows, blocks, registration, bad input.

Shapes: M masked patches, H hidden, D patch feature, R rows of a feature matrix.
"""

from __future__ import annotations

import pytest
import torch
from linear_cases import (
    assert_errs_at_most_twice,
    assert_same_bits_where_products_are_exact,
    loss_and_gradients,
)
from row_cases import NARROW, Picker

from fashionbert_fast.kernels import _linear_residual, linear_patch_kld, patch_kld
from fashionbert_fast.kernels.linear_patch_kld import linear_patch_kld_reference

WIDTHS = (1, 2, 7, 16, 17, 100, 1023, 1024, 1025, 2048)  # around vectors and the CPU's chunk of 1024
SCALES = (1e-2, 1.0, 30.0, 1e4)  # flat softmax, ours, one dominant entry, saturated


def _case(dtype: torch.dtype, seed: int):
    pick = Picker(seed)
    M, H, D = pick((0, 1, 2, 5, 16)), pick((1, 3, 8, 33)), pick(WIDTHS)
    R = pick((M, 1, 40)) if M else pick((0, 3))
    rows_M = torch.randint(max(R, 1), (M,), generator=pick.generator) if pick((True, False)) else None
    if rows_M is not None and M and pick((True, False)):
        rows_M[int(torch.randint(M, (), generator=pick.generator))] = -100
    target_dtype = dtype if dtype == torch.float64 else pick(NARROW)
    target = pick.matrix(M if rows_M is None else R, D, target_dtype, pick(SCALES))
    hidden_MH, weight_DH = pick.matrix(M, H, dtype, pick(SCALES)), pick.matrix(D, H, dtype, H**-0.5)
    return (hidden_MH, weight_DH), (target, rows_M)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float64, *NARROW])
def test_random_shapes_err_at_most_twice_as_much_as_plain_pytorch(dtype):
    """100 cases a dtype: empty, one row, odd widths, strided, gathered, ignored rows, mixed dtypes, logits of 1e4."""
    results = []
    for seed in range(100):
        parameters, (target, rows_M) = _case(dtype, seed)
        exact = loss_and_gradients(
            linear_patch_kld_reference, [p.double() for p in parameters], target.double(), rows_M, scale=1.0
        )
        # times more than 1, hidden states of 1e4 have gradients that float16 cannot hold
        mine = loss_and_gradients(linear_patch_kld, parameters, target, rows_M, scale=1.0)
        plain = loss_and_gradients(linear_patch_kld_reference, parameters, target, rows_M, scale=1.0)
        for result, parameter in zip(mine[1:], parameters, strict=True):
            assert result.dtype == dtype and result.shape == parameter.shape and result.isfinite().all()
        results.append((mine, plain, exact))
    assert_errs_at_most_twice(results, floor=1e-9 if dtype == torch.float64 else 0.0)


@pytest.mark.parametrize("dtype", NARROW)
def test_error_at_our_size_at_most_twice_plain_pytorch(dtype):
    pick = Picker(0)
    parameters, target = (
        [pick.matrix(300, 768, dtype), pick.matrix(2048, 768, dtype, 0.05)],
        pick.matrix(300, 2048, dtype),
    )
    exact = loss_and_gradients(linear_patch_kld_reference, [p.double() for p in parameters], target.double())
    mine = loss_and_gradients(linear_patch_kld, parameters, target)
    plain = loss_and_gradients(linear_patch_kld_reference, parameters, target)
    assert_errs_at_most_twice([(mine, plain, exact)], floor=1e-6)


def test_blocks_of_rows_do_not_change_the_result(monkeypatch):
    parameters, target = (torch.randn(37, 24), torch.randn(50, 24)), torch.randn(37, 50)
    whole = loss_and_gradients(linear_patch_kld, parameters, target)
    monkeypatch.setitem(_linear_residual.BLOCK_ROWS, "cpu", 8)
    blocks = loss_and_gradients(linear_patch_kld, parameters, target)
    for a, b in zip(whole, blocks, strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():  # one block of logits serves all
        torch.testing.assert_close(linear_patch_kld(*parameters, target), whole[0])


def test_is_patch_kld_of_the_product():
    hidden_MH, weight_DH, features_RD = torch.randn(9, 16), torch.randn(33, 16), torch.randn(20, 33)
    rows_M = torch.tensor([3, 3, 19, 0, 7, 1, 2, 4, 5])
    expected = patch_kld(hidden_MH @ weight_DH.T, features_RD, rows_M)
    torch.testing.assert_close(linear_patch_kld(hidden_MH, weight_DH, features_RD, rows_M), expected)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_of_zero_gives_zero_gradients(dtype):
    parameters, targets_MD = (torch.randn(64, 32, dtype=dtype), torch.randn(48, 32, dtype=dtype)), torch.randn(64, 48)
    for gradient in loss_and_gradients(linear_patch_kld, parameters, targets_MD, scale=0.0)[1:]:
        assert gradient.count_nonzero() == 0


def test_ignored_rows_count_for_nothing_even_when_they_hold_nan():
    hidden_MH, weight_DH, features_RD = torch.randn(3, 8), torch.randn(12, 8), torch.randn(5, 12)
    hidden_MH[1] = float("nan")
    rows_M = torch.tensor([4, -100, 0])
    kept = torch.tensor([0, 2])
    loss, grad_hidden_MH, grad_weight_DH = loss_and_gradients(
        linear_patch_kld, (hidden_MH.nan_to_num(), weight_DH), features_RD, rows_M
    )
    expected = loss_and_gradients(linear_patch_kld, (hidden_MH[kept], weight_DH), features_RD, rows_M[kept])
    torch.testing.assert_close(loss, expected[0])
    torch.testing.assert_close(grad_hidden_MH[kept], expected[1])
    torch.testing.assert_close(grad_weight_DH, expected[2])
    assert (grad_hidden_MH[1] == 0).all() and linear_patch_kld(hidden_MH, weight_DH, features_RD, rows_M).isfinite()


def test_reduction():
    """The sum is what the mean over the rows that count makes of as many; of no rows both are 0."""
    hidden_MH, weight_DH, features_RD = torch.randn(5, 8), torch.randn(12, 8), torch.randn(7, 12)
    for rows_M in (torch.tensor([4, -100, 0, -100, 6]), torch.tensor([4, 1, 0, 3, 6]), torch.full((5,), -100)):
        kept = int((rows_M != -100).sum())
        for function in (linear_patch_kld, linear_patch_kld_reference):
            mean = function(hidden_MH, weight_DH, features_RD, rows_M)
            total = function(hidden_MH, weight_DH, features_RD, rows_M, reduction="sum")
            torch.testing.assert_close(total, mean * kept)
    torch.testing.assert_close(
        linear_patch_kld(hidden_MH, weight_DH, features_RD[:5], reduction="sum"),
        5 * linear_patch_kld(hidden_MH, weight_DH, features_RD[:5]),
    )
    assert linear_patch_kld(hidden_MH[:0], weight_DH, features_RD, rows_M[:0]) == 0


@pytest.mark.parametrize("dtype", NARROW)
def test_same_bits_on_any_number_of_threads_where_products_are_exact(dtype):
    parameters, target = (torch.randn(300, 64).to(dtype), torch.randn(500, 64).to(dtype)), torch.randn(300, 500)
    operator = torch.ops.fashionbert_fast.linear_patch_kld
    assert_same_bits_where_products_are_exact(operator, parameters, target, None)


def test_gradcheck():
    hidden_MH, weight_DH = (torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in (3, 5))
    target_RD = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(linear_patch_kld, (hidden_MH, weight_DH, target_RD[:3]))
    rows_M = torch.tensor([1, 1, 3])
    assert torch.autograd.gradcheck(
        lambda h, w, t: linear_patch_kld(h, w, t, rows_M), (hidden_MH, weight_DH, target_RD)
    )


def test_opcheck():
    op = torch.ops.fashionbert_fast.linear_patch_kld.default
    for dtype in (torch.float64, *NARROW):
        parameters = [torch.randn(n, 8, dtype=dtype, requires_grad=True) for n in (4, 9)]
        torch.library.opcheck(op, (*parameters, torch.randn(4, 9, dtype=dtype), None, True))
        torch.library.opcheck(op, (*[p.detach() for p in parameters], torch.randn(4, 9, dtype=dtype), None, False))
    features_RD, rows_M = torch.randn(6, 9, dtype=torch.bfloat16), torch.tensor([5, -100])
    torch.library.opcheck(op, (torch.randn(2, 8, requires_grad=True), torch.randn(9, 8), features_RD, rows_M, True))
    residual_ = torch.ops.fashionbert_fast.patch_kld_residual_.default
    torch.library.opcheck(residual_, (torch.randn(2, 9), features_RD, rows_M))
    backward = torch.ops.fashionbert_fast.linear_residual_backward.default
    torch.library.opcheck(backward, (torch.tensor(2.0), torch.randn(2, 9), torch.randn(2, 8), torch.randn(9, 8), True))


def test_full_graph_compile():
    def step(hidden_MH, weight_DH, features_RD, rows_M):
        return linear_patch_kld(hidden_MH * 2, weight_DH, features_RD, rows_M) * 3

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    features_RD, rows_M = torch.randn(8, 17), torch.tensor([1, 5, 2])
    for dtype in (torch.float32, torch.bfloat16):
        parameters = (torch.randn(3, 6, dtype=dtype), torch.randn(17, 6, dtype=dtype))
        ours = loss_and_gradients(compiled, parameters, features_RD, rows_M)
        theirs = loss_and_gradients(step, parameters, features_RD, rows_M)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"hidden_MH": torch.randn(3)}, "hidden_MH"),
        ({"hidden_MH": torch.ones(3, 4, dtype=torch.int64)}, "hidden_MH"),
        ({"weight_DH": torch.randn(5, 3)}, "weight_DH"),
        ({"weight_DH": torch.randn(5, 4).bfloat16()}, "weight_DH"),
        ({"target": torch.randn(2, 5)}, "target"),
        ({"target": torch.ones(3, 5, dtype=torch.int64)}, "target"),
        ({"target_rows_M": torch.zeros(3, dtype=torch.int32)}, "target_rows_M"),
        ({"target": torch.randn(3, 5, device="meta")}, "target"),
        ({"reduction": "none"}, "reduction"),
    ],
)
def test_bad_arguments_are_named(change, argument):
    arguments = {"hidden_MH": torch.randn(3, 4), "weight_DH": torch.randn(5, 4), "target": torch.randn(3, 5)} | change
    with pytest.raises(ValueError, match=argument):
        linear_patch_kld(**arguments)


def test_a_row_out_of_range_is_refused():
    with pytest.raises(RuntimeError, match=r"target_rows\[1\] is 9 but target has 9 rows"):
        linear_patch_kld(torch.randn(2, 4), torch.randn(5, 4), torch.randn(9, 5), torch.tensor([0, 9]))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", NARROW)
def test_cuda_matches_reference(dtype):
    results = []
    for seed in range(100):
        parameters, (target, rows_M) = _case(dtype, seed)
        exact = loss_and_gradients(
            linear_patch_kld_reference, [p.double() for p in parameters], target.double(), rows_M, scale=1.0
        )
        parameters, target = [p.cuda() for p in parameters], target.cuda()
        rows_M = None if rows_M is None else rows_M.cuda()
        mine = loss_and_gradients(linear_patch_kld, parameters, target, rows_M, scale=1.0)
        plain = loss_and_gradients(linear_patch_kld_reference, parameters, target, rows_M, scale=1.0)
        results.append(([x.cpu() for x in mine], [x.cpu() for x in plain], exact))
    assert_errs_at_most_twice(results, floor=1e-6)
