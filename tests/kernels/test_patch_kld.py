"""patch_kld: the definition, random shapes against float64, gradients, gathering, registration, bad input.

Shapes: M masked patches, D patch feature, R rows of a feature matrix.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from row_cases import allowed_error, check_as_exact

from fashionbert_fast.kernels import patch_kld
from fashionbert_fast.kernels.patch_kld import patch_kld_reference

OP = torch.ops.fashionbert_fast.patch_kld.default
NARROW = (torch.float32, torch.bfloat16, torch.float16)
WIDTHS = (1, 2, 7, 8, 17, 33, 100, 255, 1023, 1024, 1025, 2048, 2600)  # around vectors and the CPU's chunk of 1024
SCALES = (1e-3, 1.0, 30.0, 1e4)  # flat softmax, ours, one dominant entry, saturated


def _matrix(rows: int, width: int, layout: str, generator: torch.Generator) -> torch.Tensor:
    """(rows, width) float64 normal numbers, in memory as ``layout`` says."""
    if layout == "columns":
        return torch.randn(rows, 2 * width, generator=generator, dtype=torch.float64)[:, ::2]
    if layout == "slice":  # rows start off any 16-byte boundary
        return torch.randn(rows, width + 3, generator=generator, dtype=torch.float64)[:, 3:]
    if layout == "transposed":
        return torch.randn(width, rows, generator=generator, dtype=torch.float64).T
    return torch.randn(rows, width, generator=generator, dtype=torch.float64)


def _cast(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``x`` in ``dtype`` with its strides (`Tensor.to` would make it dense)."""
    return torch.empty_strided(x.shape, x.stride(), dtype=dtype).copy_(x.clamp(-6e4, 6e4))


def _case(dtype: torch.dtype, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """A random problem: logits of ``dtype``, targets of any dtype that goes with it, maybe rows to gather."""
    generator = torch.Generator().manual_seed(seed)

    def pick(options):
        return options[int(torch.randint(len(options), (), generator=generator))]

    M, D, layouts = pick((0, 1, 2, 5, 16)), pick(WIDTHS), ("dense", "columns", "slice", "transposed")
    R = pick((M, 1, 40)) if M else pick((0, 3))
    rows_M = torch.randint(max(R, 1), (M,), generator=generator) if pick((True, False)) else None
    target_dtype = dtype if dtype == torch.float64 else pick(NARROW)
    target = _matrix(M if rows_M is None else R, D, pick(layouts), generator) * pick(SCALES)
    return _cast(_matrix(M, D, pick(layouts), generator) * pick(SCALES), dtype), _cast(target, target_dtype), rows_M


def _run(function, logits_MD, target, rows_M):
    """Loss and gradient, the incoming gradient being 3."""
    logits_MD = logits_MD.detach().requires_grad_()
    loss = function(logits_MD, target, rows_M)
    (gradient_MD,) = torch.autograd.grad(loss * 3, logits_MD)
    return loss.detach(), gradient_MD


def _relative_errors(result, exact) -> list[float]:
    """Of loss and gradient: the largest error, in units of the largest exact value (of 1e-6 if that is less)"""
    pairs = zip(result, exact, strict=True)
    return [float((a.double() - b).abs().max() / b.abs().max().clamp_min(1e-6)) if b.numel() else 0.0 for a, b in pairs]


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float64, *NARROW])
def test_random_shapes_err_at_most_twice_as_much_as_plain_pytorch(dtype):
    """150 cases a dtype: empty, one row, odd widths, strided, gathered, mixed dtypes, logits of 1e4."""
    ours, plain = [], []
    for seed in range(150):
        logits_MD, target, rows_M = _case(dtype, seed)
        exact = _run(patch_kld_reference, logits_MD.double(), target.double(), rows_M)
        mine, theirs = _run(patch_kld, logits_MD, target, rows_M), _run(patch_kld_reference, logits_MD, target, rows_M)
        assert mine[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert mine[1].dtype == dtype and mine[1].shape == logits_MD.shape and mine[1].is_contiguous()
        assert mine[0].isfinite() and mine[1].isfinite().all()
        ours.append(_relative_errors(mine, exact))
        plain.append(_relative_errors(theirs, exact))
    floor = 1e-9 if dtype == torch.float64 else 0.0  # measured 5e-10: there plain PyTorch is its own oracle
    check_as_exact(ours, plain, floor, allowed=allowed_error(dtype))


@pytest.mark.parametrize("dtype", NARROW)
def test_error_at_our_size_at_most_twice_plain_pytorch(dtype):
    generator = torch.Generator().manual_seed(0)
    logits_MD, target_MD = (torch.randn(64, 2048, generator=generator, dtype=torch.float64) for _ in range(2))
    logits_MD, target_MD = logits_MD.to(dtype), target_MD.to(dtype)
    exact = _run(patch_kld_reference, logits_MD.double(), target_MD.double(), None)
    mine, plain = _run(patch_kld, logits_MD, target_MD, None), _run(patch_kld_reference, logits_MD, target_MD, None)
    assert abs(mine[0].double() - exact[0]) <= max(2 * abs(plain[0].double() - exact[0]), 1e-7 * exact[0])
    for norm in (1, 2, float("inf")):
        error, theirs = ((x[1].double() - exact[1]).norm(norm) for x in (mine, plain))
        assert error <= 2 * theirs


def test_matches_the_definition():
    logits_MD, target_MD = torch.randn(7, 33), torch.randn(7, 33) * 3
    p, q = torch.softmax(target_MD, 1), torch.softmax(logits_MD, 1)
    for function in (patch_kld, patch_kld_reference):
        loss = function(logits_MD, target_MD)
        torch.testing.assert_close(loss, (p * (p / q).log()).sum(1).mean(), rtol=1e-5, atol=1e-6)
        for reduction, theirs in (("mean", "batchmean"), ("sum", "sum")):
            kl_div = F.kl_div(torch.log_softmax(logits_MD, 1), p, reduction=theirs)
            loss = function(logits_MD, target_MD, reduction=reduction)
            torch.testing.assert_close(loss, kl_div, rtol=1e-5, atol=1e-6)


def test_no_rows_give_zero_with_a_gradient():
    for shape, rows_M in (((0, 5), None), ((0, 5), torch.zeros(0, dtype=torch.int64)), ((3, 0), None)):
        loss, gradient_MD = _run(patch_kld, torch.randn(shape), torch.randn(shape), rows_M)
        assert loss == 0
        assert gradient_MD.shape == shape


def test_equal_inputs_give_zero_and_extremes_stay_finite():
    x = torch.randn(3, 9)
    assert patch_kld(x, x) == 0
    for sign in (1e4, -1e4):
        loss, gradient_MD = _run(patch_kld, x * sign, -x * sign, None)
        assert loss.isfinite() and gradient_MD.isfinite().all()


@pytest.mark.parametrize("dtype", NARROW)
def test_nan_and_infinity_are_not_hidden(dtype):
    """At every place of a row that ends in the middle of a vector."""
    for bad in (float("nan"), float("inf")):
        for column in (0, 15, 16, 36):
            x = torch.randn(2, 37)
            x[1, column] = bad
            loss, gradient_MD = _run(patch_kld, x.to(dtype), torch.randn(2, 37).to(dtype), None)
            assert not loss.isfinite()
            assert gradient_MD[0].isfinite().all() and gradient_MD[1].isnan().all()
            assert not patch_kld(torch.randn(2, 37).to(dtype), x.to(dtype)).isfinite()


def test_gathered_targets_equal_copied_ones_to_the_bit():
    features_RD, rows_M = torch.randn(20, 130, dtype=torch.bfloat16), torch.tensor([3, 3, 19, 0, 7])
    logits_MD = torch.randn(5, 130)
    gathered = _run(patch_kld, logits_MD, features_RD, rows_M)
    copied = _run(patch_kld, logits_MD, features_RD[rows_M], None)
    assert torch.equal(gathered[0], copied[0]) and torch.equal(gathered[1], copied[1])
    strided_rows_M = torch.stack([rows_M, rows_M], 1)[:, 0]
    assert torch.equal(_run(patch_kld, logits_MD, features_RD, strided_rows_M)[1], copied[1])


def test_same_bits_on_any_number_of_threads():
    logits_MD, target_MD, before = torch.randn(300, 500), torch.randn(300, 500), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(_run(patch_kld, logits_MD, target_MD, None))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0], strict=True))


def test_gradcheck_of_logits_and_targets():
    logits_MD = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    target_RD = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(patch_kld, (logits_MD, target_RD[:3]))
    rows_M = torch.tensor([1, 1, 3])
    assert torch.autograd.gradcheck(lambda x, y: patch_kld(x, y, rows_M), (logits_MD, target_RD))


def test_float64_with_float32_takes_the_type_of_the_logits():
    logits_MD, target_MD = torch.randn(3, 9), torch.randn(3, 9, dtype=torch.float64)
    assert patch_kld(logits_MD, target_MD).dtype == torch.float32
    loss = patch_kld(logits_MD.double(), target_MD.float())
    torch.testing.assert_close(loss, patch_kld_reference(logits_MD.double(), target_MD.float()))


def test_opcheck():
    for dtype in (torch.float64, *NARROW):
        logits_MD, target_MD = torch.randn(4, 9, dtype=dtype, requires_grad=True), torch.randn(4, 9, dtype=dtype)
        torch.library.opcheck(OP, (logits_MD, target_MD, None))
    features_RD = torch.randn(6, 9, dtype=torch.bfloat16)
    torch.library.opcheck(OP, (torch.randn(2, 9, requires_grad=True), features_RD, torch.tensor([5, 0])))
    torch.library.opcheck(OP, (torch.randn(9, 4).T, features_RD[:4], None))
    torch.library.opcheck(OP, (torch.randn(0, 9), features_RD, torch.zeros(0, dtype=torch.int64)))


def test_full_graph_compile():
    def step(logits_MD, features_RD, rows_M):
        return patch_kld(logits_MD * 2, features_RD, rows_M) * 3

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    features_RD, rows_M = torch.randn(8, 17), torch.tensor([1, 5, 2])
    for logits_MD in (torch.randn(3, 17), torch.randn(3, 17, dtype=torch.bfloat16)):
        one, other = (logits_MD.clone().requires_grad_() for _ in range(2))
        compiled(one, features_RD, rows_M).backward()
        step(other, features_RD, rows_M).backward()
        assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize(
    ("logits", "target", "rows", "argument"),
    [
        (torch.randn(3), torch.randn(3), None, "logits_MD"),
        (torch.ones(3, 4, dtype=torch.int64), torch.randn(3, 4), None, "logits_MD"),
        (torch.randn(3, 4), torch.randn(4, 3), None, "target_MD"),
        (torch.randn(3, 4), torch.randn(2, 4), None, "target_MD"),
        (torch.randn(3, 4), torch.ones(3, 4, dtype=torch.int64), None, "target_MD"),
        (torch.randn(3, 4), torch.randn(9, 5), torch.zeros(3, dtype=torch.int64), "target_MD"),
        (torch.randn(3, 4), torch.randn(0, 4), torch.zeros(3, dtype=torch.int64), "target_MD"),
        (torch.randn(3, 4), torch.randn(9, 4), torch.zeros(2, dtype=torch.int64), "target_rows_M"),
        (torch.randn(3, 4), torch.randn(9, 4), torch.zeros(3, dtype=torch.int32), "target_rows_M"),
        (torch.randn(3, 4), torch.randn(3, 4, device="meta"), None, "target_MD"),
    ],
)
def test_bad_arguments_are_named(logits, target, rows, argument):
    with pytest.raises(ValueError, match=argument):
        patch_kld(logits, target, rows)


def test_a_reduction_to_rows_is_refused():
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'sum', got 'none'"):
        patch_kld(torch.randn(3, 4), torch.randn(3, 4), reduction="none")


@pytest.mark.parametrize("row", [-1, 9])
def test_a_row_out_of_range_is_refused(row):
    with pytest.raises(RuntimeError, match=rf"target_rows\[1\] is {row} but target has 9 rows"):
        patch_kld(torch.randn(2, 4), torch.randn(9, 4), torch.tensor([0, row]))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", NARROW)
def test_cuda_matches_reference(dtype):
    """The CPU's cases, on the GPU: as exact, and the same bits twice."""
    ours, plain = [], []
    for seed in range(150):
        logits_MD, target, rows_M = _case(dtype, seed)
        exact = _run(patch_kld_reference, logits_MD.double(), target.double(), rows_M)
        logits_MD, target, rows_M = (None if x is None else x.cuda() for x in (logits_MD, target, rows_M))
        mine, theirs = _run(patch_kld, logits_MD, target, rows_M), _run(patch_kld_reference, logits_MD, target, rows_M)
        again = _run(patch_kld, logits_MD, target, rows_M)
        assert torch.equal(mine[0], again[0]) and torch.equal(mine[1], again[1])
        ours.append(_relative_errors([x.cpu() for x in mine], exact))
        plain.append(_relative_errors([x.cpu() for x in theirs], exact))
    for worst, theirs in zip(torch.tensor(ours).amax(0), torch.tensor(plain).amax(0), strict=True):
        assert worst <= 2 * theirs


@pytest.mark.gpu
def test_cuda_row_out_of_range_gives_nan():
    logits_MD, features_RD = torch.randn(3, 40, device="cuda"), torch.randn(9, 40, device="cuda")
    for row in (-1, 9):
        rows_M = torch.tensor([0, row, 1], device="cuda")
        loss, gradient_MD = _run(patch_kld, logits_MD, features_RD, rows_M)
        assert loss.isnan() and gradient_MD[1].isnan().all() and gradient_MD[[0, 2]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_results_of_16_bits_are_rounded_to_the_nearest(dtype):
    """The gradient is computed in float32 whatever its type: that of float32 arguments, rounded as torch rounds."""
    logits_MD, target_MD = torch.randn(2, 37, 200, generator=torch.Generator().manual_seed(0)).to(dtype)
    gradients = []
    for given in (dtype, torch.float32):
        logits = logits_MD.to(given, copy=True).requires_grad_()
        patch_kld(logits, target_MD.to(given)).backward(torch.tensor(1000.0))  # clear of float16's smallest numbers
        gradients.append(logits.grad)
    equal = (gradients[0] == gradients[1].to(dtype)).float().mean()
    assert equal > 0.99, f"{equal:.1%} are; half would be if they were cut off"
