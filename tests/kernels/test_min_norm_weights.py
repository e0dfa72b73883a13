"""min_norm_weights: against independent solvers, on degenerate Gram matrices, and what must not matter."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from fashionbert_fast.kernels import min_norm_weights
from fashionbert_fast.kernels.min_norm_weights import min_norm_weights_reference

OP = torch.ops.fashionbert_fast.min_norm_weights.default
# dtype -> atol of the weights against float64 on the same rounded Gram matrix: one rounding of a number up to 1
TOLERANCES = {torch.float64: 1e-12, torch.float32: 6e-8, torch.bfloat16: 2e-3, torch.float16: 3e-4}


def _random_gram(generator: torch.Generator, tasks: int) -> torch.Tensor:
    gradients = torch.randn(tasks, 5, generator=generator, dtype=torch.float64)
    return gradients @ gradients.T


def _degenerate_grams(rng: np.random.Generator, count: int, tasks: int = 3) -> dict[str, np.ndarray]:
    """Kinds of trouble by name, ``count`` (T, T) Gram matrices each, none larger than 1; a fourth task is a gradient of
    its own, of another length, beside the three in trouble, or in the same trouble as they."""
    gradients = rng.standard_normal((count, tasks, 5))
    other = rng.standard_normal((count, tasks, 5))
    scales = 10.0 ** rng.uniform(-6, 6, (count, tasks, 1))
    fourth = [gradients[:, 3:] * scales[:, 3:] ** 0.3] if tasks == 4 else []
    with_fourth = lambda three: np.concatenate([three, *fourth], axis=1)  # noqa: E731
    kinds = {
        "random": gradients,
        "plane": gradients * [1, 1, 0, 0, 0],
        "line": gradients * [1, 0, 0, 0, 0],
        "of very different length": gradients * scales,
        "two equal": with_fourth(gradients[:, [0, 0, 1]]),
        "three equal": with_fourth(gradients[:, [0, 0, 0]]),
        "two opposite": with_fourth(np.stack([gradients[:, 0], -gradients[:, 0], gradients[:, 1]], axis=1)),
        "two almost equal": with_fourth(gradients[:, [0, 0, 1]] + 1e-8 * other[:, :3]),
        "almost a line": gradients * [1, 1e-8, 0, 0, 0],
        "acute": gradients * 0.2 + gradients[:, :1],
        "one zero": with_fourth(gradients[:, :3] * [[1], [0], [1]]),
        "two zero": with_fourth(gradients[:, :3] * [[0], [1], [0]]),
        "all zero": gradients * 0,
    }
    if tasks == 4:
        kinds |= {
            "two pairs of equals": gradients[:, [0, 1, 0, 1]],
            "two pairs of opposites": np.concatenate([gradients[:, :2], -gradients[:, :2]], axis=1),
            "four equal": gradients[:, [0, 0, 0, 0]],
            "the origin inside": np.concatenate(
                [gradients[:, :3], -gradients[:, :3].mean(axis=1, keepdims=True)], axis=1
            ),
        }
    grams = {name: g @ g.transpose(0, 2, 1) for name, g in kinds.items()}
    return {name: g / np.maximum(abs(g).max(axis=(1, 2), keepdims=True), 1e-300) for name, g in grams.items()}


def _active_set_values(gram_NTT: np.ndarray) -> np.ndarray:
    """The minimum of w' G w over the simplex, (N,): for each support, the bordered KKT system by pseudo-inverse."""
    best_N = gram_NTT.diagonal(axis1=1, axis2=2).min(axis=1)
    tasks = gram_NTT.shape[1]
    for size in range(2, tasks + 1):
        for support in itertools.combinations(range(tasks), size):
            bordered = np.zeros((len(gram_NTT), size + 1, size + 1))
            bordered[:, :size, :size] = gram_NTT[:, support][:, :, support]
            bordered[:, size, :size] = bordered[:, :size, size] = 1
            w = np.linalg.pinv(bordered, rcond=1e-13)[:, :size, size]
            w = np.clip(w, 0, None)  # a point outside is projected: still feasible, so its value is still a bound
            w /= np.maximum(w.sum(axis=1, keepdims=True), 1e-300)
            values = np.einsum("ni,nij,nj->n", w, bordered[:, :size, :size], w)
            best_N = np.where(abs(w.sum(axis=1) - 1) < 1e-9, np.minimum(best_N, values), best_N)
    return best_N


def _scipy_value(gram: np.ndarray) -> float:
    tasks = len(gram)
    best = minimize(
        lambda w: w @ gram @ w,
        np.full(tasks, 1 / tasks),
        jac=lambda w: 2 * gram @ w,
        bounds=[(0, 1)] * tasks,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(tasks)},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 200},
    )
    return best.fun


@pytest.mark.parametrize("tasks", [2, 3, 4])
def test_matches_scipy(tasks):
    generator = torch.Generator().manual_seed(tasks)
    for _ in range(200):
        gram_TT = _random_gram(generator, tasks)
        weights_T = min_norm_weights(gram_TT)
        value = (weights_T @ gram_TT @ weights_T).item()
        assert value == pytest.approx(_scipy_value(gram_TT.numpy()), abs=1e-6)


@pytest.mark.parametrize("tasks", [3, 4])
@pytest.mark.parametrize("function", [min_norm_weights, min_norm_weights_reference])
def test_is_optimal_on_10_000_random_and_degenerate_gram_matrices(function, tasks):
    # The reference takes 100 times as long: it gets fewer.
    per_kind = 800 if function is min_norm_weights else 40
    for name, gram_NTT in _degenerate_grams(np.random.default_rng(0), per_kind, tasks).items():
        weights_NT = np.stack([function(gram).numpy() for gram in torch.from_numpy(gram_NTT)])
        assert (weights_NT >= 0).all(), name
        np.testing.assert_allclose(weights_NT.sum(axis=1), 1, atol=1e-12, err_msg=name)
        values_N = np.einsum("ni,nij,nj->n", weights_NT, gram_NTT, weights_NT)
        np.testing.assert_allclose(values_N, _active_set_values(gram_NTT), atol=1e-6, rtol=0, err_msg=name)
        # No solver at all: by convexity the minimum is above w' G w - 2 (w' G w - min_i (G w)_i).
        gap_N = values_N - np.einsum("nij,nj->ni", gram_NTT, weights_NT).min(axis=1)
        assert 2 * gap_N.max() < 1e-6, name


@pytest.mark.parametrize("function", [min_norm_weights, min_norm_weights_reference])
@pytest.mark.parametrize(
    ("gram", "weights"),
    [
        ([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]], [1 / 3, 1 / 3, 1 / 3]),  # orthogonal and equal
        ([[4.0, 0, 0], [0, 1, 0], [0, 0, 2]], [1 / 7, 4 / 7, 2 / 7]),  # orthogonal: inverse squared norms
        ([[1.0, 2, 2], [2, 9, 5], [2, 5, 9]], [1.0, 0, 0]),  # the first is the smallest of an acute cone: a vertex
        ([[1.0, -1, 0], [-1, 1, 0], [0, 0, 5]], [0.5, 0.5, 0]),  # two opposite gradients: norm 0 on an edge
        ([[0.0, 0, 0], [0, 3, 1], [0, 1, 3]], [1.0, 0, 0]),  # a task without gradient
        ([[0.0, 0, 0], [0, 0, 0], [0, 0, 0]], [1 / 3, 1 / 3, 1 / 3]),  # no gradients: a tie, and equal weights win it
        ([[2.0, 2, 2], [2, 2, 2], [2, 2, 2]], [1 / 3, 1 / 3, 1 / 3]),  # equal gradients, the same
        (np.diag([1.0, 2, 4, 5]), [20 / 39, 10 / 39, 5 / 39, 4 / 39]),  # orthogonal: inside the tetrahedron
        # A regular simplex around a point at distance 1, g_i = e_i + 1 / 2: inside, and no triangle is as good.
        (np.eye(4) + 2.0, [0.25, 0.25, 0.25, 0.25]),
        # 1, 2 and -1 beside each other, and one across: the smallest is 0, between the first and the third.
        ([[1.0, 2, -1, 0], [2, 4, -2, 0], [-1, -2, 1, 0], [0, 0, 0, 9]], [0.5, 0, 0.5, 0]),
        (np.zeros((4, 4)), [0.25, 0.25, 0.25, 0.25]),
        ([[2.0, 0], [0, 1]], [1 / 3, 2 / 3]),
        ([[5.0]], [1.0]),
    ],
)
def test_known_solutions(function, gram, weights):
    solved = function(torch.as_tensor(gram, dtype=torch.float64))
    torch.testing.assert_close(solved, torch.tensor(weights, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("lengths", [[1e5, 1.0, 1e-3], [1e5, 1.0, 1e-3, 30.0], [1e-3, 1e5, 1e5, 1.0]])
def test_gradients_of_very_different_length_keep_relative_accuracy(lengths):
    lengths_T = torch.tensor(lengths, dtype=torch.float64)  # orthogonal: w is proportional to 1 / length^2
    expected = lengths_T**-2 / (lengths_T**-2).sum()
    torch.testing.assert_close(min_norm_weights(torch.diag(lengths_T**2)), expected, atol=0, rtol=1e-9)


@pytest.mark.parametrize("tasks", [3, 4])
@pytest.mark.parametrize("scale", [1e-300, 1e-12, 1e12, 1e299])
def test_scale_does_not_matter(scale, tasks):
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        gram_TT = _random_gram(generator, tasks)
        torch.testing.assert_close(min_norm_weights(gram_TT * scale), min_norm_weights(gram_TT), atol=1e-9, rtol=0)


@pytest.mark.parametrize("tasks", [3, 4])
def test_order_does_not_matter(tasks):
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        gram_TT = _random_gram(generator, tasks)
        for order in itertools.permutations(range(tasks)):
            permuted = min_norm_weights(gram_TT[list(order)][:, list(order)])
            torch.testing.assert_close(permuted, min_norm_weights(gram_TT)[list(order)], atol=1e-9, rtol=0)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("tasks", [1, 2, 3, 4])
def test_every_dtype_and_strides(dtype, tasks):
    generator = torch.Generator().manual_seed(tasks)
    for _ in range(100):
        gram_TT = _random_gram(generator, tasks).to(dtype)
        expected = min_norm_weights_reference(gram_TT.double())
        padded = torch.full((2 * tasks, tasks + 1), torch.nan, dtype=dtype)
        padded[::2, 1:] = gram_TT
        for argument in (gram_TT, padded[::2, 1:], gram_TT.T):
            weights_T = min_norm_weights(argument)
            assert weights_T.dtype == dtype
            torch.testing.assert_close(weights_T.double(), expected, atol=TOLERANCES[dtype], rtol=0)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("function", [min_norm_weights, min_norm_weights_reference])
def test_nan_and_infinity_are_not_hidden(function, poison):
    for tasks in (3, 4):
        gram_TT = torch.eye(tasks)
        gram_TT[0, 1] = gram_TT[1, 0] = poison
        assert function(gram_TT).isnan().all()


def test_weights_are_constants():
    gram_TT = torch.eye(3, requires_grad=True)
    assert not min_norm_weights(gram_TT).requires_grad


def test_opcheck():
    for dtype in TOLERANCES:
        torch.library.opcheck(OP, (torch.eye(3, dtype=dtype),))
        torch.library.opcheck(OP, (torch.eye(4, dtype=dtype),))
    torch.library.opcheck(OP, (torch.rand(4, 2)[::2],))


def test_full_graph_compile():
    gram_TT = torch.diag(torch.tensor([4.0, 1.0, 2.0]))
    compiled = torch.compile(lambda g: min_norm_weights(g * 2) + 1, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(gram_TT), min_norm_weights(gram_TT) + 1)


@pytest.mark.parametrize(
    "gram", [torch.ones(2, 3), torch.ones(5, 5), torch.ones(0, 0), torch.ones(3), torch.ones(3, 3, dtype=torch.int32)]
)
def test_bad_arguments_are_named(gram):
    with pytest.raises(ValueError, match="gram_TT"):
        min_norm_weights(gram)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_cuda_is_the_cpu_result(dtype):
    kinds = [_degenerate_grams(np.random.default_rng(1), 10, tasks).values() for tasks in (3, 4)]
    for grams_NTT in itertools.chain(*kinds):
        for gram_TT in torch.from_numpy(grams_NTT).to(dtype):
            on_gpu = min_norm_weights(gram_TT.cuda()).cpu().double()
            ours, theirs = on_gpu, min_norm_weights(gram_TT).double()
            # Where the minimiser is not unique the weights may differ, the value not: fused multiply-adds round apart.
            values = [(w @ gram_TT.double() @ w).item() for w in (ours, theirs)]
            assert values[0] == pytest.approx(values[1], abs=max(1e-12, TOLERANCES[dtype]))


@pytest.mark.gpu
def test_cuda_does_not_synchronise():
    gram_TT = torch.eye(3, device="cuda")
    min_norm_weights(gram_TT)
    torch.cuda.set_sync_debug_mode("error")
    try:
        min_norm_weights(gram_TT)
    finally:
        torch.cuda.set_sync_debug_mode("default")
