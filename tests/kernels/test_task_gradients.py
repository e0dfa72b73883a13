"""task_gram and task_mix: against float64, for every dtype and size, and the same bits for any number of threads."""

from __future__ import annotations

import pytest
import torch

from fashionbert_fast.kernels.task_gradients import task_gram, task_gram_reference, task_mix, task_mix_reference

GRAM = torch.ops.fashionbert_fast.task_gram.default
MIX = torch.ops.fashionbert_fast.task_mix.default
WEIGHTS_T = torch.tensor([0.2, 0.5, 0.3])
WEIGHTS = {3: WEIGHTS_T, 4: torch.tensor([0.2, 0.5, 0.3, -0.7])}
# dtype -> rtol of the mixed gradient: one rounding of the output, after float32 sums where the dtype is float32
ROUNDING = {torch.float64: 1e-15, torch.float32: 3e-7, torch.bfloat16: 4e-3, torch.float16: 5e-4}
# nothing, one, less than a vector, a vector and some, a block of 4096 less, exactly and more, several threads' share
SIZES = [0, 1, 7, 37, 4095, 4096, 4097, 150_001]


def _gradients(shape, dtype, device="cpu", seed=0, tasks=3) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    scales = (1.0, 1e-3, 0.1, 10.0)[:tasks]  # task gradients are of different length
    return tuple((torch.randn(shape, generator=generator) * scale).to(device, dtype) for scale in scales)


def _assert_gram(gram_TT: torch.Tensor, gradients: tuple[torch.Tensor, ...]) -> None:
    exact_TT = task_gram_reference(tuple(gradient.double() for gradient in gradients))
    assert gram_TT.dtype == torch.float32
    assert torch.equal(gram_TT, gram_TT.T)
    # An entry's error is relative to the two lengths: dot products cancel.
    lengths_T = exact_TT.diagonal().sqrt()
    error_TT = (gram_TT.double() - exact_TT).abs()
    assert (error_TT <= 5e-7 * lengths_T[:, None] * lengths_T).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("tasks", WEIGHTS)
def test_matches_float64(dtype, size, tasks):
    gradients, weights_T = _gradients(size, dtype, tasks=tasks), WEIGHTS[tasks]
    _assert_gram(task_gram(gradients), gradients)
    mixed = task_mix(gradients, weights_T)
    exact = task_mix_reference(tuple(gradient.double() for gradient in gradients), weights_T.double())
    assert mixed.dtype == dtype
    terms = task_mix_reference(tuple(gradient.double().abs() for gradient in gradients), weights_T.double().abs())
    assert ((mixed.double() - exact).abs() <= ROUNDING[dtype] * terms + torch.finfo(dtype).tiny).all()


def test_a_fourth_task_changes_no_bit_of_the_other_three():
    gradients = _gradients(5000, torch.float32, tasks=4)
    assert torch.equal(task_gram(gradients)[:3, :3], task_gram(gradients[:3]))
    without = torch.cat([WEIGHTS_T, torch.zeros(1)])
    assert torch.equal(task_mix(gradients, without), task_mix(gradients[:3], WEIGHTS_T))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gram_errs_by_its_rounding_and_mix_at_most_twice_plain_pytorch(dtype):
    errors, mixed, plain_mixed = [], [], []
    for seed in range(100):
        gradients = _gradients(1000 + 37 * seed, dtype, seed=seed)
        wide = tuple(gradient.double() for gradient in gradients)
        exact = task_gram_reference(wide)
        # Of the product of the two lengths. Sums that join double often enough add little to the result's rounding.
        lengths_T = exact.diagonal().sqrt()
        errors.append(((task_gram(gradients).double() - exact).abs() / (lengths_T[:, None] * lengths_T)).max())
        exact = task_mix_reference(wide, WEIGHTS_T.double())
        mixed.append((task_mix(gradients, WEIGHTS_T).double() - exact).abs().max())
        plain_mixed.append((task_mix_reference(gradients, WEIGHTS_T).double() - exact).abs().max())
    assert max(errors) <= 2 * 2**-24  # half of it the result's own rounding
    assert max(mixed) <= 2 * max(plain_mixed)


def test_shapes_and_strides():
    gradients = _gradients((5, 6, 22), torch.float32)
    strided = tuple(gradient[:, ::2].transpose(0, 2) for gradient in gradients)
    dense = tuple(gradient.contiguous() for gradient in strided)
    assert torch.equal(task_gram(strided), task_gram(dense))
    assert torch.equal(task_mix(strided, WEIGHTS_T), task_mix(dense, WEIGHTS_T))
    assert task_mix(strided, WEIGHTS_T).shape == strided[0].shape
    unaligned = tuple(gradient.flatten()[1:] for gradient in gradients)  # what a vector load must not assume
    assert torch.equal(task_gram(unaligned), task_gram(tuple(gradient.clone() for gradient in unaligned)))
    expanded = (torch.ones(()).expand(4, 3),) * 3  # the gradient of a plain sum
    assert torch.equal(task_gram(expanded), torch.full((3, 3), 12.0))


def test_the_same_bits_for_any_number_of_threads():
    gradients = _gradients(1_000_003, torch.float32)
    four = (*gradients, gradients[0].flip(0))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append((task_gram(gradients), task_gram(four)))
            results[-1] += (task_mix(gradients, WEIGHTS[3]), task_mix(four, WEIGHTS[4]))
    finally:
        torch.set_num_threads(threads)
    for found in results[1:]:
        assert all(torch.equal(here, first) for here, first in zip(found, results[0], strict=True))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("position", [0, 4096, -1])
def test_nan_and_infinity_are_not_hidden(poison, position):
    gradients = _gradients(5000, torch.float32)
    gradients[1][position] = poison
    gram_TT = task_gram(gradients)
    assert not gram_TT[1].isfinite().any()
    assert gram_TT[[0, 2]][:, [0, 2]].isfinite().all()
    assert not task_mix(gradients, WEIGHTS_T)[position].isfinite()


def test_bfloat16_rounds_as_pytorch_does():
    pattern = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(
        torch.int16
    )  # every bfloat16, NaNs and infinities too
    every = pattern.view(torch.bfloat16)
    for weights in ([1.0, 0.0, 0.0], [1.0 + 2**-8, 0.0, 0.0], [0.3, 0.0, 0.0]):
        mixed = task_mix((every, every * 0 + 1, every * 0 + 1), torch.tensor(weights))
        expected = (every.float() * weights[0] + (every.float() * 0)).bfloat16()
        torch.testing.assert_close(mixed, expected, atol=0, rtol=0, equal_nan=True)


def test_opcheck():
    for dtype in ROUNDING:
        *three, fourth = _gradients((3, 50), dtype, tasks=4)
        torch.library.opcheck(GRAM, tuple(three))
        torch.library.opcheck(GRAM, (*three, fourth))
        torch.library.opcheck(MIX, (*three, WEIGHTS[3]))
        torch.library.opcheck(MIX, (*three, WEIGHTS[4], fourth))


def test_full_graph_compile():
    def function(a, b, c):
        return task_mix((a, b, c), task_gram((a, b, c)).sum(dim=0))

    gradients = _gradients((4, 9), torch.float32)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*gradients), function(*gradients))


@pytest.mark.parametrize(
    ("gradients", "argument"),
    [
        ((torch.ones(2),) * 2, "gradients"),
        ((torch.ones(2),) * 5, "gradients"),
        ((torch.ones(2), torch.ones(2), torch.ones(2), torch.ones(3)), r"gradients\[3\]"),
        ((torch.ones(2), torch.ones(2), torch.ones(3)), r"gradients\[2\]"),
        ((torch.ones(2), torch.ones(2).double(), torch.ones(2)), r"gradients\[1\]"),
        ((torch.ones(2, dtype=torch.int64),) * 3, r"gradients\[0\]"),
    ],
)
def test_bad_gradients_are_named(gradients, argument):
    for function in (task_gram, lambda g: task_mix(g, WEIGHTS_T)):
        with pytest.raises(ValueError, match=argument):
            function(gradients)


@pytest.mark.parametrize("weights_T", [torch.ones(2), torch.ones(3).double(), [1, 1, 1], torch.ones(3, device="meta")])
def test_bad_weights_are_named(weights_T):
    with pytest.raises(ValueError, match="weights_T"):
        task_mix(_gradients(4, torch.float32), weights_T)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [*SIZES, 3_000_001])  # the last: every block takes several steps
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("tasks", WEIGHTS)
def test_cuda_matches_float64(dtype, size, tasks):
    gradients = _gradients(size + 1, dtype, "cuda", tasks=tasks)
    weights_T = WEIGHTS[tasks].cuda()
    for given in (tuple(g[:-1] for g in gradients), tuple(g[1:] for g in gradients)):  # 16-byte aligned, and not
        gram_TT = task_gram(given)
        _assert_gram(gram_TT, given)
        assert torch.equal(gram_TT, task_gram(given))
        exact = task_mix_reference(tuple(gradient.double() for gradient in given), weights_T.double())
        terms = task_mix_reference(tuple(gradient.double().abs() for gradient in given), weights_T.double().abs())
        error = (task_mix(given, weights_T).double() - exact).abs()
        assert (error <= ROUNDING[dtype] * terms + torch.finfo(dtype).tiny).all()
