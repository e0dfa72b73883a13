"""packed_attention: random shapes against float64, SDPA, dropout, gradients, threads, Triton, registration, bad input.

Shapes: T tokens, S sequences, N heads, E head width, H = N E.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from row_cases import allowed_error, check_as_exact

from fashionbert_fast.kernels import packed_attention
from fashionbert_fast.kernels.dropout import keep_reference, scale_of
from fashionbert_fast.kernels.packed_attention import packed_attention_reference

OP = torch.ops.fashionbert_fast.packed_attention.default
NARROW = (torch.float32, torch.bfloat16, torch.float16)
LENGTHS = (0, 1, 2, 3, 5, 15, 16, 17, 31, 33, 64, 72, 89)  # around tiles of 6 rows and vectors of 16
LONG = (127, 128, 129, 191, 193, 250)  # around the backward's blocks of 192 queries and Triton's of 128 keys
WIDTHS = (1, 3, 8, 16, 31, 64, 65, 80)
SCALES = (1e-3, 1.0, 4.0, 30.0)  # flat softmax, ours, peaked, one probability of 1


def _offsets(lengths) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def _case(dtype: torch.dtype, seed: int):
    """A random problem: qkv of ``dtype`` (maybe strided, maybe with spare rows), offsets, heads and keywords."""
    generator = torch.Generator().manual_seed(seed)

    def pick(options):
        return options[int(torch.randint(len(options), (), generator=generator))]

    lengths = [pick(LENGTHS) for _ in range(pick((0, 1, 2, 4)))] + ([pick(LONG)] if pick(range(6)) == 0 else [])
    N, E, spare, layout = pick((1, 2, 3)), pick(WIDTHS), pick((0, 0, 1, 5)), pick(("dense", "slice", "columns"))
    T = sum(lengths) + spare
    wide = torch.randn(T, 6 * N * E + 3, generator=generator, dtype=torch.float64).to(dtype)
    factor = pick(SCALES)
    qkv = {
        "dense": wide[:, : 3 * N * E].contiguous(),
        "slice": wide[:, 3 : 3 * N * E + 3],
        "columns": wide[:, : 6 * N * E : 2],
    }[layout]
    qkv[:, : N * E] *= factor
    bias = torch.randn(3 * N * E, generator=generator, dtype=torch.float64).to(dtype) if pick((True, False)) else None
    max_seqlen, dropout = max([*lengths, 0]) + pick((0, 0, 7)), pick((0.0, 0.0, 0.1, 0.5))
    key = torch.tensor([2**61 + seed])
    keywords = {"bias_3H": bias, "max_seqlen": max_seqlen, "dropout": dropout, "seed": key, "site": seed}
    return qkv, _offsets(lengths), N, keywords


def _run(function, qkv, offsets, heads, keywords):
    """Context, gradient of qkv, of bias, for a fixed random incoming gradient."""
    qkv = qkv.detach().requires_grad_()
    bias = keywords["bias_3H"]
    leaves = [qkv] if bias is None else [qkv, bias.detach().requires_grad_()]
    context = function(qkv, offsets, heads, **keywords | {"bias_3H": None if bias is None else leaves[1]})
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(context.shape, generator=generator, dtype=torch.float64).to(context.dtype).to(context.device)
    return [context.detach(), *torch.autograd.grad(context, leaves, grad)]


def _plain(qkv, offsets, heads, *, max_seqlen, bias_3H=None, dropout=0.0, seed=None, site=0):
    """Plain PyTorch in the dtype of qkv: SDPA a sequence at a time; its products and softmax where dropout asks."""
    rows = qkv if bias_3H is None else qkv + bias_3H
    H = qkv.shape[1] // 3
    parts = [rows[:0, :H]]
    for first, last in itertools.pairwise(offsets.tolist()):
        q, k, v = rows[first:last].view(last - first, 3, heads, H // heads).permute(1, 2, 0, 3)
        if dropout == 0 or last == first:
            context = F.scaled_dot_product_attention(q[None], k[None], v[None])[0]
        else:
            p = torch.softmax(q @ k.transpose(1, 2) / (H // heads) ** 0.5, dim=-1)
            tokens = torch.arange(first, last).expand(heads, -1)
            planes = torch.arange(heads)[:, None].expand_as(tokens)
            keep = keep_reference(int(seed), site, tokens, last - first, dropout, planes)
            context = (p * keep * scale_of(dropout)).to(qkv.dtype) @ v
        parts.append(context.transpose(0, 1).reshape(last - first, H))
    return torch.cat([*parts, qkv.new_zeros(qkv.shape[0] - int(offsets[-1]), H)])


def _errors(result, exact) -> list[float]:
    """The largest error of each, in units of its largest exact value (of 1e-3 if that is less)."""
    pairs = zip(result, exact, strict=True)
    return [float((a.double() - b).abs().max() / b.abs().max().clamp_min(1e-3)) if b.numel() else 0.0 for a, b in pairs]


def _poison(qkv) -> None:
    """Leaves NaN in freed memory of the sizes that the operator allocates."""
    T, H3 = qkv.shape
    for columns in (H3 // 3, H3, H3):
        torch.full((T, columns), float("nan"), dtype=qkv.dtype)


def _double(keywords):
    bias = keywords["bias_3H"]
    return keywords | {"bias_3H": None if bias is None else bias.double()}


@pytest.mark.parametrize("dtype", [torch.float64, *NARROW])
def test_random_shapes_err_at_most_twice_as_much_as_plain_pytorch(dtype):
    """100 cases a dtype: no sequence, empty ones, one token, odd widths, strided, spare rows, peaked, dropout."""
    ours, plain = [], []
    for seed in range(100):
        qkv, offsets, heads, keywords = _case(dtype, seed)
        exact = _run(packed_attention_reference, qkv.double(), offsets, heads, _double(keywords))
        _poison(qkv)
        mine, theirs = (
            _run(packed_attention, qkv, offsets, heads, keywords),
            _run(_plain, qkv, offsets, heads, keywords),
        )
        for tensor, like in zip(mine, exact, strict=True):
            assert tensor.dtype == dtype and tensor.shape == like.shape and tensor.isfinite().all()
        end = int(offsets[-1])
        assert not mine[0][end:].any() and not mine[1][end:].any()
        ours.append([*_errors(mine, exact), 0.0][:3])
        plain.append([*_errors(theirs, exact), 0.0][:3])
    floor = 1e-6 if dtype == torch.float64 else 0.0  # dropout's scale is a float32 number
    check_as_exact(ours, plain, floor, allowed=allowed_error(dtype))


@pytest.mark.parametrize("dtype", NARROW)
def test_error_at_our_size_at_most_twice_sdpa(dtype):
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(3 * 89, 3 * 256, generator=generator, dtype=torch.float64).to(dtype)
    keywords = {"bias_3H": torch.randn(3 * 256, generator=generator, dtype=torch.float64).to(dtype), "max_seqlen": 89}
    offsets = _offsets([89, 89, 89])
    exact = _run(packed_attention_reference, qkv.double(), offsets, 4, _double(keywords))
    mine, plain = (_run(function, qkv, offsets, 4, keywords) for function in (packed_attention, _plain))
    for a, b, right in zip(mine, plain, exact, strict=True):
        for norm in (1, 2, float("inf")):
            assert (a.double() - right).norm(norm) <= 2 * (b.double() - right).norm(norm)


@pytest.mark.parametrize("dtype", NARROW)
def test_equals_sdpa_over_padded_sequences_with_a_mask(dtype):
    lengths, N, E = [72, 128, 1, 89], 3, 64
    qkv, offsets = torch.randn(sum(lengths), 3 * N * E).to(dtype), _offsets(lengths)
    padded = torch.nn.utils.rnn.pad_sequence(qkv.split(lengths), batch_first=True)
    mask = torch.arange(128)[None] < torch.tensor(lengths)[:, None]
    q, k, v = padded.view(4, 128, 3, N, E).permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
    expected = expected.transpose(1, 2).reshape(4, 128, N * E)[mask]
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(
        packed_attention(qkv, offsets, N, max_seqlen=128), expected, atol=4 * rounding, rtol=4 * rounding
    )


def test_dropout_is_that_of_the_counter():
    """With values that pick out probabilities: zeros of the context are the mask's."""
    L, N = 64, 2
    qkv = torch.zeros(2 * L, 3, N, L)
    qkv[:, 2] = torch.eye(L).repeat(2, 1)[:, None]
    context = packed_attention(
        qkv.view(2 * L, -1), _offsets([L, L]), N, max_seqlen=L, dropout=0.3, seed=torch.tensor([5]), site=9
    ).view(2 * L, N, L)
    tokens = torch.arange(2 * L)[:, None].expand(-1, N)
    keep = keep_reference(5, 9, tokens, L, 0.3, torch.arange(N).expand(2 * L, -1))
    torch.testing.assert_close(context, keep * scale_of(0.3) / L)
    everything = packed_attention(
        qkv.view(2 * L, -1), _offsets([L, L]), N, max_seqlen=L, dropout=1.0, seed=torch.tensor([5])
    )
    assert not everything.any()


def test_large_scores_stay_exact():
    """Scores of 1e4, whose float32 log-sum-exp is rounded by 1e-3: the gradient must not be."""
    qkv = torch.randn(40, 3 * 16, dtype=torch.float64)
    qkv[:, 0], qkv[:, 16] = 100.0, 400.0
    result = _run(packed_attention, qkv.float(), _offsets([40]), 1, {"bias_3H": None, "max_seqlen": 40})
    exact = _run(
        packed_attention_reference, qkv.float().double(), _offsets([40]), 1, {"bias_3H": None, "max_seqlen": 40}
    )
    plain = _run(_plain, qkv.float(), _offsets([40]), 1, {"bias_3H": None, "max_seqlen": 40})
    for mine, theirs in zip(_errors(result, exact), _errors(plain, exact), strict=True):
        assert mine <= 2 * theirs


@pytest.mark.parametrize("dtype", NARROW)
def test_nan_stays_in_its_sequence_and_head(dtype):
    qkv = torch.randn(50, 3 * 2 * 8).to(dtype)
    qkv[20, 0] = float("nan")  # a query of the first head of the second sequence
    context, grad_qkv = _run(packed_attention, qkv, _offsets([17, 30]), 2, {"bias_3H": None, "max_seqlen": 30})
    assert context[20, :8].isnan().all()
    context[20, :8] = 0
    assert context.isfinite().all()
    assert grad_qkv[17:47].view(30, 3, 2, 8)[:, 1:, 0].isnan().all()
    grad_qkv[17:47].view(30, 3, 2, 8)[:, :, 0] = 0
    assert grad_qkv.isfinite().all()


def test_same_bits_on_any_number_of_threads():
    before, results = torch.get_num_threads(), []
    qkv, bias = torch.randn(400, 3 * 3 * 64).bfloat16(), torch.randn(3 * 3 * 64).bfloat16()
    keywords = {"bias_3H": bias, "max_seqlen": 200, "dropout": 0.1, "seed": torch.tensor([3])}
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(_run(packed_attention, qkv, _offsets([72, 200, 0, 89, 9]), 3, keywords))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0], strict=True))


def test_gradcheck():
    qkv = torch.randn(9, 3 * 2 * 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(18, dtype=torch.float64, requires_grad=True)
    for dropout in (0.0, 0.4):
        assert torch.autograd.gradcheck(
            lambda x, b, p=dropout: packed_attention(
                x, _offsets([3, 0, 5]), 2, max_seqlen=5, bias_3H=b, dropout=p, seed=torch.tensor([1])
            ),
            (qkv, bias),
        )


def test_opcheck():
    seed = torch.tensor([4])
    for dtype in (torch.float64, *NARROW):
        qkv = torch.randn(20, 24, dtype=dtype, requires_grad=True)
        bias = torch.randn(24, dtype=dtype, requires_grad=True)
        torch.library.opcheck(OP, (qkv, bias, _offsets([7, 0, 11]), 2, 11, 0.1, seed, 3))
        torch.library.opcheck(OP, (qkv, None, _offsets([20]), 2, 20, 0.0, None, 0))
    torch.library.opcheck(OP, (torch.randn(0, 24), None, _offsets([]), 2, 0, 0.0, None, 0))


def test_full_graph_compile():
    def step(qkv, bias, offsets, seed):
        return packed_attention(qkv * 2, offsets, 2, max_seqlen=9, bias_3H=bias, dropout=0.2, seed=seed, site=1) * 3

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for dtype in (torch.float32, torch.bfloat16):
        grads = []
        for function in (compiled, step):
            torch.manual_seed(0)
            qkv, bias = torch.randn(15, 24).to(dtype).requires_grad_(), torch.randn(24).to(dtype).requires_grad_()
            function(qkv, bias, _offsets([9, 5]), torch.tensor([2])).sum().backward()
            grads.append((qkv.grad, bias.grad))
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"qkv_T3H": torch.randn(4)}, "qkv_T3H"),
        ({"qkv_T3H": torch.randn(4, 25)}, "qkv_T3H"),
        ({"qkv_T3H": torch.ones(4, 24, dtype=torch.int64)}, "qkv_T3H"),
        ({"heads": 0}, "heads"),
        ({"heads": 3}, "qkv_T3H"),
        ({"max_seqlen": -1}, "max_seqlen"),
        ({"cu_seqlens_S1": torch.tensor([0, 4])}, "cu_seqlens_S1"),
        ({"cu_seqlens_S1": torch.zeros(0, dtype=torch.int32)}, "cu_seqlens_S1"),
        ({"cu_seqlens_S1": torch.zeros(2, dtype=torch.int32, device="meta")}, "cu_seqlens_S1"),
        ({"bias_3H": torch.randn(23)}, "bias_3H"),
        ({"bias_3H": torch.randn(24).double()}, "bias_3H"),
        ({"bias_3H": torch.randn(24, device="meta")}, "bias_3H"),
        ({"dropout": 1.5}, "dropout"),
        ({"dropout": 0.5, "seed": None}, "seed"),
        ({"dropout": 0.5, "seed": torch.tensor([1.0])}, "seed"),
        ({"dropout": 0.5, "seed": torch.ones(1, dtype=torch.int64, device="meta")}, "seed"),
        ({"site": -1}, "site"),
    ],
)
def test_bad_arguments_are_named(change, argument):
    arguments = {"qkv_T3H": torch.randn(4, 24), "cu_seqlens_S1": _offsets([4]), "heads": 2, "max_seqlen": 4}
    with pytest.raises(ValueError, match=argument):
        packed_attention(**arguments | change)


@pytest.mark.parametrize("offsets", [[1, 4], [0, 3, 2], [0, 5], [0, 4]])
def test_bad_offsets_are_refused(offsets):
    with pytest.raises(RuntimeError, match="cu_seqlens"):
        packed_attention(torch.randn(4, 24), torch.tensor(offsets, dtype=torch.int32), 2, max_seqlen=3)


TRITON_CHECK = """
import torch
from fashionbert_fast.kernels.packed_attention import packed_attention_reference
from fashionbert_fast.kernels.triton import packed_attention as on_gpu

def check(dtype, lengths, N, E, dropout, bias, seed, spare=2):
    torch.manual_seed(seed)
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    T, max_seqlen = int(offsets[-1]) + spare, max([*lengths, 0])
    qkv = torch.randn(T, 3 * N * E + 2).to(dtype)[:, 2:].requires_grad_()
    b = torch.randn(3 * N * E).to(dtype).requires_grad_() if bias else None
    g = torch.randn(T, N * E).to(dtype)
    key = torch.tensor([2**61 + seed])
    exact = packed_attention_reference(
        qkv.double(), offsets, N, bias_3H=None if b is None else b.double(), dropout=dropout, seed=key, site=7)
    gradients = torch.autograd.grad(exact, [qkv] + [b] * bias, g.double())
    rest = (N, max_seqlen, dropout, key if dropout else None, 7)
    context, lse = on_gpu.launch_forward(qkv.detach(), b if b is None else b.detach(), offsets, *rest)
    result = on_gpu.launch_backward(g, qkv.detach(), b if b is None else b.detach(), offsets, context, lse, *rest)
    ops = torch.ops.fashionbert_fast
    on_cpu = ops.packed_attention(qkv.detach(), b if b is None else b.detach(), offsets, *rest)
    tolerance = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    torch.testing.assert_close(lse, on_cpu[1], atol=4 * tolerance, rtol=tolerance)
    pairs = [(context, exact), *zip(result, gradients)]
    for mine, right in pairs:
        error = (mine.double() - right).abs().max() / right.abs().max().clamp_min(1e-3) if right.numel() else 0
        assert mine.dtype == dtype and error < 4 * tolerance, (dtype, lengths, N, E, dropout, bias, float(error))
    assert not context[T - spare:].any() and not result[0][T - spare:].any()

ALL = (torch.float32, torch.bfloat16, torch.float16)
case = 0
for dtype in ALL:
    for lengths, N, E in (((), 2, 4), ((0, 1), 1, 3), ((5, 0, 17), 2, 16), ((72,), 1, 64), ((128, 3), 1, 20),
                          ((129, 2), 1, 16), ((200,), 2, 33), ((64, 65), 1, 128)):
        case += 1
        check(dtype, lengths, N, E, (0.0, 0.2)[case % 2], case % 3 == 0, case)
for length in range(1, 201, 13):
    check(torch.float32, (length,), 1, 8, 0.1, True, length)
"""


def test_triton_in_the_interpreter():
    """The CUDA launchers on CPU tensors: dtypes, lengths from 1 to 200, one block of keys and several, dropout."""
    result = subprocess.run(
        [sys.executable, "-c", TRITON_CHECK], capture_output=True, text=True, env=os.environ | {"TRITON_INTERPRET": "1"}
    )
    assert result.returncode == 0, result.stderr[-4000:]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", NARROW)
def test_cuda_matches_reference(dtype):
    """The CPU's cases, on the GPU: as exact, and the same bits twice."""
    ours, plain = [], []
    for seed in range(100):
        qkv, offsets, heads, keywords = _case(dtype, seed)
        exact = _run(packed_attention_reference, qkv.double(), offsets, heads, _double(keywords))
        theirs = _run(_plain, qkv, offsets, heads, keywords)
        on_gpu = {key: value.cuda() if isinstance(value, torch.Tensor) else value for key, value in keywords.items()}
        mine, again = (_run(packed_attention, qkv.cuda(), offsets.cuda(), heads, on_gpu) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(mine, again, strict=True))
        ours.append([*_errors([x.cpu() for x in mine], exact), 0.0][:3])
        plain.append([*_errors(theirs, exact), 0.0][:3])
    for error, theirs in zip(torch.tensor(ours).amax(0), torch.tensor(plain).amax(0), strict=True):
        assert error <= 2 * theirs
