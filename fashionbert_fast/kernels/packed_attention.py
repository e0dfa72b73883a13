"""packed_attention: self-attention inside each of S sequences that lie packed along one axis, without padding.

Formula, of each sequence and head, with q, k, v the rows of qkv plus bias and E the width of a head:

    p = softmax(q k' / sqrt(E)),    context = dropout(p) v

The backward recomputes p from the saved log-sum-exp of each row (Dao et al. 2022) and dropout's mask from its counter;
with g the gradient of the context and m the mask times its scale:

    dp = m (g v'),    ds = p (dp - rowsum(p dp)),    dq = ds k / sqrt(E),    dk = ds' q / sqrt(E),    dv = (m p)' g

Shapes: T tokens of the packed axis, S sequences, N heads, E head width, H = N E, M queries and K keys of a block.
"""

from __future__ import annotations

import itertools

import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

from fashionbert_fast.kernels import dropout as dropouts
from fashionbert_fast.kernels._library import check_floating, check_same, on_device_of_first, reverse_mode_only
from fashionbert_fast.kernels.dropout import keep_tile

Saved = tuple[torch.Tensor, torch.Tensor]


# Reference -----------------------------------------------------------------------------------------------------------
def packed_attention_reference(
    qkv_T3H: torch.Tensor, offsets_S1: torch.Tensor, heads: int, *, longest: int | None = None,
    bias_3H: torch.Tensor | None = None, dropout: float = 0.0, seed: torch.Tensor | None = None, stream: int = 0,
) -> torch.Tensor:  # fmt: skip
    """The formula in plain PyTorch, a sequence at a time, in float32 (float64 for float64 input)."""
    dtype = torch.float64 if qkv_T3H.dtype == torch.float64 else torch.float32
    T, E = qkv_T3H.shape[0], qkv_T3H.shape[1] // (3 * heads)
    rows_T3H = qkv_T3H.to(dtype) if bias_3H is None else qkv_T3H.to(dtype) + bias_3H.to(dtype)
    parts, offsets = [rows_T3H[:0, : heads * E]], offsets_S1.tolist()
    for first, last in itertools.pairwise(offsets):
        q_NLE, k_NLE, v_NLE = rows_T3H[first:last].view(-1, 3, heads, E).permute(1, 2, 0, 3)
        p_NLL = torch.softmax(q_NLE @ k_NLE.transpose(1, 2) / E**0.5, dim=-1)
        if dropout > 0:
            tokens_NL = torch.arange(first, last).expand(heads, -1)
            plane_NL = torch.arange(heads)[:, None].expand_as(tokens_NL)
            keep_NLL = dropouts.keep_reference(int(seed), stream, tokens_NL, last - first, dropout, plane_NL)
            p_NLL = torch.where(keep_NLL.to(p_NLL.device), p_NLL * dropouts.scale_of(dropout), 0)
        parts.append((p_NLL @ v_NLE).transpose(0, 1).reshape(last - first, heads * E))
    parts.append(rows_T3H.new_zeros(T - offsets[-1], heads * E))
    return torch.cat(parts).to(qkv_T3H.dtype)


# Triton --------------------------------------------------------------------------------------------------------------
@triton.jit
def _load_rows(base, rows_M, row_stride, columns_E, bias, live_M, E: tl.constexpr, HAS_BIAS: tl.constexpr):
    """A (M, E) tile of numbers plus bias, rounded once; zeros outside the sequence and the head."""
    live_ME = live_M[:, None] & (columns_E < E)[None, :]
    tile_ME = tl.load(base + rows_M.to(tl.int64)[:, None] * row_stride + columns_E[None, :], mask=live_ME, other=0.0)
    if HAS_BIAS:
        bias_E = tl.load(bias + columns_E, mask=columns_E < E, other=0.0)
        sum_ME = tile_ME.to(tl.float32) + bias_E.to(tl.float32)[None, :]
        tile_ME = tl.where(live_ME, sum_ME, 0.0).to(tile_ME.dtype)
    return tile_ME


@triton.jit
def _dot(a, b, DOT: tl.constexpr):
    """a b in float32; float32 operands are not rounded to TF32."""
    return tl.dot(a.to(DOT), b.to(DOT), input_precision="ieee")


@triton.jit
def _forward_kernel(
    qkv, bias, offsets, seed, context, lse, row_stride, T, stream, threshold, keep_scale, scale,
    N: tl.constexpr, E: tl.constexpr, M: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr, DROPS: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """M queries of one head of one sequence; program (sequence and head, block of queries)."""
    sequence, head = tl.program_id(0) // N, tl.program_id(0) % N
    first = tl.load(offsets + sequence)
    length = tl.load(offsets + sequence + 1) - first
    start = tl.program_id(1) * M
    if start >= length:
        return
    columns_E, rows_M = tl.arange(0, WIDTH), start + tl.arange(0, M)
    at = qkv + first.to(tl.int64) * row_stride + head * E
    bias_at = bias + head * E
    q_ME = _load_rows(at, rows_M, row_stride, columns_E, bias_at, rows_M < length, E, HAS_BIAS)
    maximum_M = tl.full((M,), float("-inf"), tl.float32)
    sum_M = tl.zeros((M,), tl.float32)
    context_ME = tl.zeros((M, WIDTH), tl.float32)
    for from_key in range(0, length, K):
        keys_K = from_key + tl.arange(0, K)
        k_KE = _load_rows(at + N * E, keys_K, row_stride, columns_E, bias_at + N * E, keys_K < length, E, HAS_BIAS)
        v_KE = _load_rows(
            at + 2 * N * E, keys_K, row_stride, columns_E, bias_at + 2 * N * E, keys_K < length, E, HAS_BIAS
        )
        scores_MK = tl.where((keys_K < length)[None, :], _dot(q_ME, tl.trans(k_KE), DOT) * scale, float("-inf"))
        new_maximum_M = tl.maximum(maximum_M, tl.max(scores_MK, 1))
        weights_MK = tl.exp(scores_MK - new_maximum_M[:, None])
        shrink_M = tl.exp(maximum_M - new_maximum_M)
        sum_M = sum_M * shrink_M + tl.sum(weights_MK, 1)
        if DROPS:
            keep_MK = keep_tile(tl.load(seed), stream, head, first + rows_M, from_key // 128, threshold, M, K // 128)
            weights_MK = tl.where(keep_MK, weights_MK * keep_scale, 0.0)
        context_ME = context_ME * shrink_M[:, None] + _dot(weights_MK.to(q_ME.dtype), v_KE, DOT)
        maximum_M = new_maximum_M
    tokens_M = (first + rows_M).to(tl.int64)
    live_M = rows_M < length
    tl.store(
        context + tokens_M[:, None] * (N * E) + head * E + columns_E[None, :],
        (context_ME / sum_M[:, None]).to(context.dtype.element_ty),
        mask=live_M[:, None] & (columns_E < E)[None, :],
    )
    tl.store(lse + head.to(tl.int64) * T + tokens_M, maximum_M + tl.log(sum_M), mask=live_M)


@triton.jit
def _gradients(
    q_ME, k_KE, v_KE, g_ME, mean_M, lse_M, live_MK, seed, stream, head, tokens_M, from_key, threshold, keep_scale,
    scale, M: tl.constexpr, K: tl.constexpr, DROPS: tl.constexpr, SINGLE: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Probabilities after dropout and gradients of the scaled scores, (M, K), of a block of queries and one of keys.

    ``mean_M`` is rowsum(p dp), the same as the product of context and its gradient; where the keys are all of the
    sequence (SINGLE) it is summed here instead, without the rounding of the stored context.
    """
    scores_MK = tl.where(live_MK, _dot(q_ME, tl.trans(k_KE), DOT) * scale, float("-inf"))
    p_MK = tl.where(live_MK, tl.exp(scores_MK - lse_M[:, None]), 0.0)
    slopes_MK = _dot(g_ME, tl.trans(v_KE), DOT)
    dropped_MK = p_MK
    if DROPS:
        keep_MK = keep_tile(tl.load(seed), stream, head, tokens_M, from_key // 128, threshold, M, K // 128)
        slopes_MK = tl.where(keep_MK, slopes_MK * keep_scale, 0.0)
        dropped_MK = tl.where(keep_MK, p_MK * keep_scale, 0.0)
    if SINGLE:
        mean_M = tl.sum(p_MK * slopes_MK, 1)
    return dropped_MK.to(q_ME.dtype), (p_MK * (slopes_MK - mean_M[:, None])).to(q_ME.dtype)


@triton.jit
def _key_backward_kernel(
    grad_context, qkv, bias, offsets, seed, context, lse, grad_qkv, row_stride, T, stream, threshold, keep_scale, scale,
    N: tl.constexpr, E: tl.constexpr, M: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr, DROPS: tl.constexpr, DOT: tl.constexpr, SINGLE: tl.constexpr,
):  # fmt: skip
    """Gradients of K keys and values of one head of one sequence; where they are all its keys, of its queries too."""
    sequence, head = tl.program_id(0) // N, tl.program_id(0) % N
    first = tl.load(offsets + sequence)
    length = tl.load(offsets + sequence + 1) - first
    from_key = tl.program_id(1) * K
    if from_key >= length:
        return
    H: tl.constexpr = N * E
    columns_E, keys_K = tl.arange(0, WIDTH), from_key + tl.arange(0, K)
    inside_E, live_K = columns_E < E, keys_K < length
    at = qkv + first.to(tl.int64) * row_stride + head * E
    bias_at = bias + head * E
    k_KE = _load_rows(at + H, keys_K, row_stride, columns_E, bias_at + H, live_K, E, HAS_BIAS)
    v_KE = _load_rows(at + 2 * H, keys_K, row_stride, columns_E, bias_at + 2 * H, live_K, E, HAS_BIAS)
    grad_k_KE, grad_v_KE = tl.zeros((K, WIDTH), tl.float32), tl.zeros((K, WIDTH), tl.float32)
    result = grad_qkv + first.to(tl.int64) * (3 * H) + head * E
    for from_query in range(0, length, M):
        rows_M = from_query + tl.arange(0, M)
        live_M, tokens_M = rows_M < length, (first + rows_M).to(tl.int64)
        q_ME = _load_rows(at, rows_M, row_stride, columns_E, bias_at, live_M, E, HAS_BIAS)
        place_ME = tokens_M[:, None] * H + head * E + columns_E[None, :]
        g_ME = tl.load(grad_context + place_ME, mask=live_M[:, None] & inside_E[None, :], other=0.0)
        lse_M = tl.load(lse + head.to(tl.int64) * T + tokens_M, mask=live_M, other=0.0)
        mean_M = tl.zeros((M,), tl.float32)
        if not SINGLE:
            context_ME = tl.load(context + place_ME, mask=live_M[:, None] & inside_E[None, :], other=0.0)
            mean_M = tl.sum(g_ME.to(tl.float32) * context_ME.to(tl.float32), 1)
        dropped_MK, ds_MK = _gradients(
            q_ME, k_KE, v_KE, g_ME, mean_M, lse_M, live_M[:, None] & live_K[None, :], seed, stream, head,
            first + rows_M, from_key, threshold, keep_scale, scale, M, K, DROPS, SINGLE, DOT,
        )  # fmt: skip
        grad_v_KE += _dot(tl.trans(dropped_MK), g_ME, DOT)
        grad_k_KE += _dot(tl.trans(ds_MK), q_ME, DOT)
        if SINGLE:
            grad_q_ME = _dot(ds_MK, k_KE, DOT) * scale
            tl.store(
                result + rows_M.to(tl.int64)[:, None] * (3 * H) + columns_E[None, :],
                grad_q_ME.to(grad_qkv.dtype.element_ty), mask=live_M[:, None] & inside_E[None, :],
            )  # fmt: skip
    place_KE = keys_K.to(tl.int64)[:, None] * (3 * H) + columns_E[None, :]
    live_KE = live_K[:, None] & inside_E[None, :]
    tl.store(result + H + place_KE, (grad_k_KE * scale).to(grad_qkv.dtype.element_ty), mask=live_KE)
    tl.store(result + 2 * H + place_KE, grad_v_KE.to(grad_qkv.dtype.element_ty), mask=live_KE)


@triton.jit
def _query_backward_kernel(
    grad_context, qkv, bias, offsets, seed, context, lse, grad_qkv, row_stride, T, stream, threshold, keep_scale, scale,
    N: tl.constexpr, E: tl.constexpr, M: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr, DROPS: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Gradients of M queries of one head of one sequence whose keys take more than one block."""
    sequence, head = tl.program_id(0) // N, tl.program_id(0) % N
    first = tl.load(offsets + sequence)
    length = tl.load(offsets + sequence + 1) - first
    start = tl.program_id(1) * M
    if start >= length:
        return
    H: tl.constexpr = N * E
    columns_E, rows_M = tl.arange(0, WIDTH), start + tl.arange(0, M)
    live_M, tokens_M = rows_M < length, (first + rows_M).to(tl.int64)
    live_ME = live_M[:, None] & (columns_E < E)[None, :]
    at = qkv + first.to(tl.int64) * row_stride + head * E
    bias_at = bias + head * E
    q_ME = _load_rows(at, rows_M, row_stride, columns_E, bias_at, live_M, E, HAS_BIAS)
    place_ME = tokens_M[:, None] * H + head * E + columns_E[None, :]
    g_ME = tl.load(grad_context + place_ME, mask=live_ME, other=0.0)
    context_ME = tl.load(context + place_ME, mask=live_ME, other=0.0)
    mean_M = tl.sum(g_ME.to(tl.float32) * context_ME.to(tl.float32), 1)
    lse_M = tl.load(lse + head.to(tl.int64) * T + tokens_M, mask=live_M, other=0.0)
    grad_q_ME = tl.zeros((M, WIDTH), tl.float32)
    for from_key in range(0, length, K):
        keys_K = from_key + tl.arange(0, K)
        live_K = keys_K < length
        k_KE = _load_rows(at + H, keys_K, row_stride, columns_E, bias_at + H, live_K, E, HAS_BIAS)
        v_KE = _load_rows(at + 2 * H, keys_K, row_stride, columns_E, bias_at + 2 * H, live_K, E, HAS_BIAS)
        _dropped_MK, ds_MK = _gradients(
            q_ME, k_KE, v_KE, g_ME, mean_M, lse_M, live_M[:, None] & live_K[None, :], seed, stream, head,
            first + rows_M, from_key, threshold, keep_scale, scale, M, K, DROPS, False, DOT,
        )  # fmt: skip
        grad_q_ME += _dot(ds_MK, k_KE, DOT)
    tl.store(
        grad_qkv + tokens_M[:, None] * (3 * H) + head * E + columns_E[None, :],
        (grad_q_ME * scale).to(grad_qkv.dtype.element_ty), mask=live_ME,
    )  # fmt: skip


# Launch --------------------------------------------------------------------------------------------------------------
KEY_BLOCK = 128  # a block of dropout's columns; one block is the fast case
DOTS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def _launch_options(qkv_T3H, bias_3H, heads: int, dropout: float, *, backward: bool) -> dict:
    """Compile-time arguments. Blocks of queries and warps are those whose code, compiled for sm_90, spills least."""
    E = qkv_T3H.shape[1] // (3 * heads)
    interpreted = isinstance(_forward_kernel, InterpretedFunction)  # NumPy multiplies no bfloat16
    small = backward or E > 64
    M = 16 if qkv_T3H.dtype == torch.float32 else 32 if small else 64
    return {
        "N": heads, "E": E, "M": M, "K": KEY_BLOCK, "WIDTH": max(16, triton.next_power_of_2(E)),
        "HAS_BIAS": bias_3H is not None, "DROPS": dropouts.threshold_of(dropout) > 0,
        "DOT": tl.float32 if interpreted else DOTS[qkv_T3H.dtype],
        "num_warps": 8 if M < 64 else 4, "num_stages": 1 if M < 64 else 2,
    }  # fmt: skip


def _numbers(qkv_T3H, heads: int, dropout: float, stream: int) -> tuple:
    """Run-time numbers both directions share, from the row stride on."""
    E = qkv_T3H.shape[1] // (3 * heads)
    drop = (stream, dropouts.threshold_of(dropout), dropouts.scale_of(dropout))
    return (qkv_T3H.stride(0), qkv_T3H.shape[0], *drop, E**-0.5)


def _dense_rows(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


@on_device_of_first
def launch_forward(
    qkv_T3H, bias_3H, offsets_S1, heads: int, longest: int, dropout: float, seed, stream: int
) -> Saved:  # fmt: skip
    """Context (T, H) and log-sum-exp (N, T) by Triton."""
    qkv_T3H, offsets_S1 = _dense_rows(qkv_T3H), offsets_S1.contiguous()
    T, S, H = qkv_T3H.shape[0], offsets_S1.shape[0] - 1, qkv_T3H.shape[1] // 3
    context_TH = qkv_T3H.new_zeros(T, H)  # rows past the last sequence stay so
    lse_NT = qkv_T3H.new_zeros(heads, T, dtype=torch.float32)
    if S == 0 or longest == 0:
        return context_TH, lse_NT
    options = _launch_options(qkv_T3H, bias_3H, heads, dropout, backward=False)
    bias = qkv_T3H if bias_3H is None else bias_3H.contiguous()
    _forward_kernel[(S * heads, triton.cdiv(longest, options["M"]))](
        qkv_T3H, bias, offsets_S1, offsets_S1 if seed is None else seed, context_TH, lse_NT,
        *_numbers(qkv_T3H, heads, dropout, stream), **options,
    )  # fmt: skip
    return context_TH, lse_NT


@on_device_of_first
def launch_backward(
    grad_context_TH, qkv_T3H, bias_3H, offsets_S1, context_TH, lse_NT, heads: int, longest: int, dropout: float, seed,
    stream: int,
) -> Saved:  # fmt: skip
    """Gradients of qkv (T, 3H) and bias ((3H,), or (0,) without one) by Triton."""
    qkv_T3H, offsets_S1 = _dense_rows(qkv_T3H), offsets_S1.contiguous()
    T, S, H3 = qkv_T3H.shape[0], offsets_S1.shape[0] - 1, qkv_T3H.shape[1]
    grad_qkv_T3H = qkv_T3H.new_zeros(T, H3)
    if S > 0 and longest > 0:
        options = _launch_options(qkv_T3H, bias_3H, heads, dropout, backward=True)
        bias = qkv_T3H if bias_3H is None else bias_3H.contiguous()
        arguments = (
            grad_context_TH.contiguous(), qkv_T3H, bias, offsets_S1, offsets_S1 if seed is None else seed,
            context_TH.contiguous(), lse_NT, grad_qkv_T3H, *_numbers(qkv_T3H, heads, dropout, stream),
        )  # fmt: skip
        single = longest <= KEY_BLOCK
        _key_backward_kernel[(S * heads, triton.cdiv(longest, KEY_BLOCK))](*arguments, **options, SINGLE=single)
        if not single:
            _query_backward_kernel[(S * heads, triton.cdiv(longest, options["M"]))](*arguments, **options)
    if bias_3H is None:
        return grad_qkv_T3H, grad_qkv_T3H.new_empty(0)
    return grad_qkv_T3H, grad_qkv_T3H.sum(0, dtype=torch.float32).to(bias_3H.dtype)


# Registration; the CPU's kernels are csrc/cpu/packed_attention.cpp ---------------------------------------------------
torch.library.impl("fashionbert_fast::packed_attention", "CUDA", launch_forward)
torch.library.impl("fashionbert_fast::packed_attention_backward", "CUDA", launch_backward)


@torch.library.register_fake("fashionbert_fast::packed_attention")
def _(qkv_T3H, bias_3H, offsets_S1, heads, longest, dropout, seed, stream):
    T, H = qkv_T3H.shape[0], qkv_T3H.shape[1] // 3
    dtype = torch.float64 if qkv_T3H.dtype == torch.float64 else torch.float32
    return qkv_T3H.new_empty(T, H), qkv_T3H.new_empty(heads, T, dtype=dtype)


@torch.library.register_fake("fashionbert_fast::packed_attention_backward")
def _(grad_context_TH, qkv_T3H, bias_3H, offsets_S1, context_TH, lse_NT, heads, longest, dropout, seed, stream):
    return qkv_T3H.new_empty(qkv_T3H.shape), qkv_T3H.new_empty(0 if bias_3H is None else qkv_T3H.shape[1])


def _setup_context(ctx, inputs, output):
    qkv_T3H, bias_3H, offsets_S1, ctx.heads, ctx.longest, ctx.dropout, seed, ctx.stream = inputs
    ctx.save_for_backward(qkv_T3H, bias_3H, offsets_S1, seed, *output)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_context_TH, _grad_lse_NT):
    if grad_context_TH is None:
        return (None,) * 8
    qkv_T3H, bias_3H, offsets_S1, seed, context_TH, lse_NT = ctx.saved_tensors
    grad_qkv_T3H, grad_bias_3H = torch.ops.fashionbert_fast.packed_attention_backward(
        grad_context_TH, qkv_T3H, bias_3H, offsets_S1, context_TH, lse_NT, ctx.heads, ctx.longest, ctx.dropout, seed,
        ctx.stream,
    )  # fmt: skip
    return grad_qkv_T3H, None if bias_3H is None else grad_bias_3H, None, None, None, None, None, None


torch.library.register_autograd("fashionbert_fast::packed_attention", _backward, setup_context=_setup_context)


# Public function -----------------------------------------------------------------------------------------------------
@reverse_mode_only
def packed_attention(
    qkv_T3H: torch.Tensor, offsets_S1: torch.Tensor, heads: int, *, longest: int,
    bias_3H: torch.Tensor | None = None, dropout: float = 0.0, seed: torch.Tensor | None = None, stream: int = 0,
) -> torch.Tensor:  # fmt: skip
    """Self-attention within each packed sequence, (T, H) in the dtype of ``qkv_T3H``; sums in float32.

    What scaled dot product attention with a block-diagonal mask gives. No host synchronisation on CUDA; the same bits
    on every run and on any number of threads. Gradients for ``qkv_T3H`` and ``bias_3H``.

    Args:
        qkv_T3H: (T, 3H) float32, bfloat16 or float16, on CPU or CUDA (float64 on CPU): each token's query, key and
            value, ``heads`` x E numbers each. T may exceed ``offsets_S1[-1]``: those rows of the result are zeros.
        offsets_S1: (S + 1,) int32, ascending from 0: tokens offsets[s] .. offsets[s + 1] are sequence s, maybe none.
        heads: N; H = N E. On CUDA E is at most 128.
        longest: at least the length of every sequence; up to 128 is fastest on CUDA. Offsets that break their rules or
            this bound are a RuntimeError on CPU; on CUDA they are not looked at, and the result is undefined.
        bias_3H: (3H,) in the dtype of ``qkv_T3H``, added to every row on the way in.
        dropout: probability in [0, 1] of dropping a probability: `kernels.dropout`'s element (stream, plane = head,
            row = the query's token, column = the key's position in its sequence).
        seed: (1,) int64 on the device of ``qkv_T3H``, needed where ``dropout`` > 0.
        stream: the place in the model that drops.

    Raises:
        ValueError: naming the argument whose shape, dtype, device or value is wrong.
    """
    check_floating("qkv_T3H", qkv_T3H)
    if not isinstance(heads, int) or heads < 1:
        raise ValueError(f"heads must be a positive int, got {heads!r}")
    if qkv_T3H.dim() != 2 or qkv_T3H.shape[1] == 0 or qkv_T3H.shape[1] % (3 * heads):
        raise ValueError(f"qkv_T3H must have shape (T, 3 * {heads} heads * E), got {tuple(qkv_T3H.shape)}")
    if qkv_T3H.is_cuda and (qkv_T3H.dtype == torch.float64 or qkv_T3H.shape[1] > 3 * heads * 128):
        raise ValueError("qkv_T3H on CUDA must be float32, bfloat16 or float16 with heads at most 128 wide")
    if longest < 0:
        raise ValueError(f"longest must be at least the length of every sequence, got {longest}")
    _check_offsets(qkv_T3H, offsets_S1)
    if bias_3H is not None:
        check_floating("bias_3H", bias_3H)
        check_same("bias_3H", bias_3H, "qkv_T3H", qkv_T3H)
        if bias_3H.shape != qkv_T3H.shape[1:]:
            raise ValueError(f"bias_3H must have shape ({qkv_T3H.shape[1]},), got {tuple(bias_3H.shape)}")
    dropouts.check_dropout(dropout, seed, stream, qkv_T3H.device)
    return torch.ops.fashionbert_fast.packed_attention(
        qkv_T3H, bias_3H, offsets_S1, heads, longest, float(dropout), seed if dropout > 0 else None, stream
    )[0]


def _check_offsets(qkv_T3H: torch.Tensor, offsets_S1: torch.Tensor) -> None:
    if not isinstance(offsets_S1, torch.Tensor) or offsets_S1.dtype != torch.int32 or offsets_S1.dim() != 1:
        raise ValueError("offsets_S1 must be an int32 vector: where each sequence starts, and where the last ends")
    if offsets_S1.shape[0] == 0:
        raise ValueError("offsets_S1 is empty: it has one number more than there are sequences")
    if offsets_S1.device != qkv_T3H.device:
        raise ValueError(f"offsets_S1 is on {offsets_S1.device} but qkv_T3H is on {qkv_T3H.device}: move one of them")
