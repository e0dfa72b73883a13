"""packed_attention on a GPU: kernels/packed_attention.py has the formula.

Shapes: T tokens of the packed axis, S sequences, N heads, E head width, H = N E, M queries and K keys of a block.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

from fashionbert_fast.kernels import dropout as dropouts
from fashionbert_fast.kernels._library import on_device_of_first
from fashionbert_fast.kernels.triton.column_sums import column_sums
from fashionbert_fast.kernels.triton.dropout import keep_tile

Saved = tuple[torch.Tensor, torch.Tensor]


# Kernels -------------------------------------------------------------------------------------------------------------
@triton.jit
def _load_part(
    at, bias_at, rows_M, live_M, row_stride, columns_E,
    PART: tl.constexpr, N: tl.constexpr, E: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Query (PART 0), key (1) or value (2) of M tokens in the head and sequence at ``at``, (M, E), plus bias, rounded
    once; zeros where not live and outside the head."""
    at, inside_E = at + PART * N * E, columns_E < E
    live_ME = live_M[:, None] & inside_E[None, :]
    tile_ME = tl.load(at + rows_M.to(tl.int64)[:, None] * row_stride + columns_E[None, :], mask=live_ME, other=0.0)
    if HAS_BIAS:
        bias_E = tl.load(bias_at + PART * N * E + columns_E, mask=inside_E, other=0.0)
        sum_ME = tile_ME.to(tl.float32) + bias_E.to(tl.float32)[None, :]
        tile_ME = tl.where(live_ME, sum_ME, 0.0).to(tile_ME.dtype)
    return tile_ME


@triton.jit
def _load_result(
    grad_context, context, lse, T, head, tokens_M, live_M, columns_E,
    N: tl.constexpr, E: tl.constexpr, SINGLE: tl.constexpr,
):  # fmt: skip
    """What the forward gave M queries, as their gradients need it: the gradient of the context (M, E), the product of
    both (zeros where SINGLE, which does not read the context) and the log-sum-exp, (M,)."""
    place_ME = tokens_M.to(tl.int64)[:, None] * (N * E) + head * E + columns_E[None, :]
    live_ME = live_M[:, None] & (columns_E < E)[None, :]
    g_ME = tl.load(grad_context + place_ME, mask=live_ME, other=0.0)
    lse_M = tl.load(lse + head.to(tl.int64) * T + tokens_M, mask=live_M, other=0.0)
    mean_M = tl.zeros_like(lse_M)
    if not SINGLE:
        context_ME = tl.load(context + place_ME, mask=live_ME, other=0.0)
        mean_M = tl.sum(g_ME.to(tl.float32) * context_ME.to(tl.float32), 1)
    return g_ME, mean_M, lse_M


@triton.jit
def _dot(a, b, DOT: tl.constexpr):
    """a b in float32; float32 operands are not rounded to TF32."""
    return tl.dot(a.to(DOT), b.to(DOT), input_precision="ieee")


@triton.jit
def _zero_rows(at, row_stride, first, last, columns_E, M: tl.constexpr, E: tl.constexpr):
    """Zeros in E columns of the rows ``first`` to ``last``."""
    for start in range(first, last, M):
        rows_M = start + tl.arange(0, M)
        place_ME = rows_M.to(tl.int64)[:, None] * row_stride + columns_E[None, :]
        zero_ME = tl.zeros_like(place_ME).to(at.dtype.element_ty)
        tl.store(at + place_ME, zero_ME, mask=(rows_M < last)[:, None] & (columns_E < E)[None, :])


@triton.jit(do_not_specialize=["seed", "T", "site", "threshold"])
def _forward_kernel(
    qkv, bias, cu_seqlens, seed, context, lse, row_stride, T, site, threshold, keep_scale, scale,
    N: tl.constexpr, E: tl.constexpr, M: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr, DROPS: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """M queries of one head of one sequence; program (sequence and head, block of queries). After the last sequence:
    zeros in the rows that no sequence has."""
    sequence, head = tl.program_id(0) // N, tl.program_id(0) % N
    first = tl.load(cu_seqlens + sequence)
    start = tl.program_id(1) * M
    columns_E, rows_M = tl.arange(0, WIDTH), start + tl.arange(0, M)
    if sequence == tl.num_programs(0) // N - 1:
        if start == 0:
            _zero_rows(context + head * E, N * E, first, T, columns_E, M, E)
            _zero_rows(lse + head.to(tl.int64) * T, 1, first, T, tl.arange(0, 1), M, 1)
        return
    length = tl.load(cu_seqlens + sequence + 1) - first
    if start >= length:
        return
    at, bias_at = qkv + first.to(tl.int64) * row_stride + head * E, bias + head * E
    tokens_M, live_M = first + rows_M, rows_M < length
    q_ME = _load_part(at, bias_at, rows_M, live_M, row_stride, columns_E, 0, N, E, HAS_BIAS)
    maximum_M = tl.full((M,), float("-inf"), tl.float32)
    sum_M = tl.zeros((M,), tl.float32)
    context_ME = tl.zeros((M, WIDTH), tl.float32)
    for from_key in range(0, length, K):
        keys_K = from_key + tl.arange(0, K)
        live_K = keys_K < length
        k_KE = _load_part(at, bias_at, keys_K, live_K, row_stride, columns_E, 1, N, E, HAS_BIAS)
        v_KE = _load_part(at, bias_at, keys_K, live_K, row_stride, columns_E, 2, N, E, HAS_BIAS)
        scores_MK = tl.where(live_K[None, :], _dot(q_ME, tl.trans(k_KE), DOT) * scale, float("-inf"))
        new_maximum_M = tl.maximum(maximum_M, tl.max(scores_MK, 1))
        weights_MK = tl.exp(scores_MK - new_maximum_M[:, None])
        shrink_M = tl.exp(maximum_M - new_maximum_M)
        sum_M = sum_M * shrink_M + tl.sum(weights_MK, 1)
        if DROPS:
            keep_MK = keep_tile(tl.load(seed), site, head, tokens_M, from_key // 128, threshold, M, K // 128)
            weights_MK = tl.where(keep_MK, weights_MK * keep_scale, 0.0)
        context_ME = context_ME * shrink_M[:, None] + _dot(weights_MK.to(q_ME.dtype), v_KE, DOT)
        maximum_M = new_maximum_M
    tl.store(
        context + tokens_M.to(tl.int64)[:, None] * (N * E) + head * E + columns_E[None, :],
        (context_ME / sum_M[:, None]).to(context.dtype.element_ty),
        mask=live_M[:, None] & (columns_E < E)[None, :],
    )
    tl.store(lse + head.to(tl.int64) * T + tokens_M, maximum_M + tl.log(sum_M), mask=live_M)


@triton.jit
def _gradients(
    q_ME, k_KE, v_KE, g_ME, mean_M, lse_M, live_MK, seed, site, head, tokens_M, from_key, threshold, keep_scale,
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
        keep_MK = keep_tile(tl.load(seed), site, head, tokens_M, from_key // 128, threshold, M, K // 128)
        slopes_MK = tl.where(keep_MK, slopes_MK * keep_scale, 0.0)
        dropped_MK = tl.where(keep_MK, p_MK * keep_scale, 0.0)
    if SINGLE:
        mean_M = tl.sum(p_MK * slopes_MK, 1)
    return dropped_MK.to(q_ME.dtype), (p_MK * (slopes_MK - mean_M[:, None])).to(q_ME.dtype)


@triton.jit(do_not_specialize=["seed", "T", "site", "threshold"])
def _key_backward_kernel(
    grad_context, qkv, bias, cu_seqlens, seed, context, lse, grad_qkv, sums, row_stride, T, site, threshold, keep_scale,
    scale, N: tl.constexpr, E: tl.constexpr, M: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr, DROPS: tl.constexpr, DOT: tl.constexpr, SINGLE: tl.constexpr,
):  # fmt: skip
    """Gradients of K keys and values of one head of one sequence; where they are all its keys (SINGLE), of its queries
    too. Their sums over rows, which are the gradient of bias, go to row (sequence, block) of ``sums``. After the last
    sequence: zeros in the rows that no sequence has."""
    sequence, head = tl.program_id(0) // N, tl.program_id(0) % N
    first = tl.load(cu_seqlens + sequence)
    from_key = tl.program_id(1) * K
    H: tl.constexpr = N * E
    columns_E, keys_K = tl.arange(0, WIDTH), from_key + tl.arange(0, K)
    if sequence == tl.num_programs(0) // N - 1:
        if from_key == 0:
            for part in tl.static_range(3):
                _zero_rows(grad_qkv + part * H + head * E, 3 * H, first, T, columns_E, M, E)
        return
    length = tl.load(cu_seqlens + sequence + 1) - first
    if from_key >= length and not SINGLE:
        return
    inside_E, live_K = columns_E < E, keys_K < length
    at, bias_at = qkv + first.to(tl.int64) * row_stride + head * E, bias + head * E
    k_KE = _load_part(at, bias_at, keys_K, live_K, row_stride, columns_E, 1, N, E, HAS_BIAS)
    v_KE = _load_part(at, bias_at, keys_K, live_K, row_stride, columns_E, 2, N, E, HAS_BIAS)
    grad_k_KE, grad_v_KE = tl.zeros((K, WIDTH), tl.float32), tl.zeros((K, WIDTH), tl.float32)
    sum_q_E = tl.zeros((WIDTH,), tl.float32)
    result = grad_qkv + first.to(tl.int64) * (3 * H) + head * E
    for from_query in range(0, length, M):
        rows_M = from_query + tl.arange(0, M)
        live_M, tokens_M = rows_M < length, first + rows_M
        q_ME = _load_part(at, bias_at, rows_M, live_M, row_stride, columns_E, 0, N, E, HAS_BIAS)
        g_ME, mean_M, lse_M = _load_result(
            grad_context, context, lse, T, head, tokens_M, live_M, columns_E, N, E, SINGLE
        )
        dropped_MK, ds_MK = _gradients(
            q_ME, k_KE, v_KE, g_ME, mean_M, lse_M, live_M[:, None] & live_K[None, :], seed, site, head,
            tokens_M, from_key, threshold, keep_scale, scale, M, K, DROPS, SINGLE, DOT,
        )  # fmt: skip
        grad_v_KE += _dot(tl.trans(dropped_MK), g_ME, DOT)
        grad_k_KE += _dot(tl.trans(ds_MK), q_ME, DOT)
        if SINGLE:
            grad_q_ME = _dot(ds_MK, k_KE, DOT) * scale
            sum_q_E += tl.sum(grad_q_ME, 0)
            tl.store(
                result + rows_M.to(tl.int64)[:, None] * (3 * H) + columns_E[None, :],
                grad_q_ME.to(grad_qkv.dtype.element_ty),
                mask=live_M[:, None] & inside_E[None, :],
            )
    place_KE = keys_K.to(tl.int64)[:, None] * (3 * H) + columns_E[None, :]
    live_KE = live_K[:, None] & inside_E[None, :]
    tl.store(result + H + place_KE, (grad_k_KE * scale).to(grad_qkv.dtype.element_ty), mask=live_KE)
    tl.store(result + 2 * H + place_KE, grad_v_KE.to(grad_qkv.dtype.element_ty), mask=live_KE)
    if HAS_BIAS:
        block = (sequence * tl.num_programs(1) + tl.program_id(1)).to(tl.int64)
        to = sums + block * (3 * H) + head * E + columns_E
        if SINGLE:
            tl.store(to, sum_q_E, mask=inside_E)
        tl.store(to + H, tl.sum(grad_k_KE, 0) * scale, mask=inside_E)
        tl.store(to + 2 * H, tl.sum(grad_v_KE, 0), mask=inside_E)


@triton.jit(do_not_specialize=["seed", "T", "site", "threshold"])
def _query_backward_kernel(
    grad_context, qkv, bias, cu_seqlens, seed, context, lse, grad_qkv, sums, row_stride, T, site, threshold, keep_scale,
    scale, N: tl.constexpr, E: tl.constexpr, M: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr, DROPS: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Gradients of M queries of one head of one sequence whose keys take more than one block."""
    sequence, head = tl.program_id(0) // N, tl.program_id(0) % N
    first = tl.load(cu_seqlens + sequence)
    length = tl.load(cu_seqlens + sequence + 1) - first
    start = tl.program_id(1) * M
    if start >= length:
        return
    H: tl.constexpr = N * E
    columns_E, rows_M = tl.arange(0, WIDTH), start + tl.arange(0, M)
    at, bias_at = qkv + first.to(tl.int64) * row_stride + head * E, bias + head * E
    live_M, tokens_M = rows_M < length, first + rows_M
    q_ME = _load_part(at, bias_at, rows_M, live_M, row_stride, columns_E, 0, N, E, HAS_BIAS)
    g_ME, mean_M, lse_M = _load_result(grad_context, context, lse, T, head, tokens_M, live_M, columns_E, N, E, False)
    grad_q_ME = tl.zeros((M, WIDTH), tl.float32)
    for from_key in range(0, length, K):
        keys_K = from_key + tl.arange(0, K)
        live_K = keys_K < length
        k_KE = _load_part(at, bias_at, keys_K, live_K, row_stride, columns_E, 1, N, E, HAS_BIAS)
        v_KE = _load_part(at, bias_at, keys_K, live_K, row_stride, columns_E, 2, N, E, HAS_BIAS)
        _dropped_MK, ds_MK = _gradients(
            q_ME, k_KE, v_KE, g_ME, mean_M, lse_M, live_M[:, None] & live_K[None, :], seed, site, head,
            tokens_M, from_key, threshold, keep_scale, scale, M, K, DROPS, False, DOT,
        )  # fmt: skip
        grad_q_ME += _dot(ds_MK, k_KE, DOT)
    place_ME = tokens_M.to(tl.int64)[:, None] * (3 * H) + head * E + columns_E[None, :]
    live_ME = live_M[:, None] & (columns_E < E)[None, :]
    tl.store(grad_qkv + place_ME, (grad_q_ME * scale).to(grad_qkv.dtype.element_ty), mask=live_ME)
    if HAS_BIAS:
        block = (sequence * tl.num_programs(1) + tl.program_id(1)).to(tl.int64)
        tl.store(sums + block * (3 * H) + head * E + columns_E, tl.sum(grad_q_ME, 0) * scale, mask=columns_E < E)


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


def _numbers(qkv_T3H, heads: int, dropout: float, site: int) -> tuple:
    """Run-time numbers both directions share, from the row stride on."""
    E = qkv_T3H.shape[1] // (3 * heads)
    drop = (site, dropouts.threshold_of(dropout), dropouts.scale_of(dropout))
    return (qkv_T3H.stride(0), qkv_T3H.shape[0], *drop, E**-0.5)


def _dense_rows(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


@on_device_of_first
def launch_forward(
    qkv_T3H, bias_3H, cu_seqlens_S1, heads: int, max_seqlen: int, dropout: float, seed, site: int
) -> Saved:
    """Context (T, H) and log-sum-exp (N, T) by Triton."""
    qkv_T3H, cu_seqlens_S1 = _dense_rows(qkv_T3H), cu_seqlens_S1.contiguous()
    T, S, H = qkv_T3H.shape[0], cu_seqlens_S1.shape[0] - 1, qkv_T3H.shape[1] // 3
    if S == 0 or max_seqlen == 0:
        return qkv_T3H.new_zeros(T, H), qkv_T3H.new_zeros(heads, T, dtype=torch.float32)
    context_TH, lse_NT = qkv_T3H.new_empty(T, H), qkv_T3H.new_empty(heads, T, dtype=torch.float32)
    options = _launch_options(qkv_T3H, bias_3H, heads, dropout, backward=False)
    bias = qkv_T3H if bias_3H is None else bias_3H.contiguous()
    _forward_kernel[((S + 1) * heads, triton.cdiv(max_seqlen, options["M"]))](
        qkv_T3H, bias, cu_seqlens_S1, cu_seqlens_S1 if seed is None else seed, context_TH, lse_NT,
        *_numbers(qkv_T3H, heads, dropout, site), **options,
    )  # fmt: skip
    return context_TH, lse_NT


@on_device_of_first
def launch_backward(
    grad_context_TH, qkv_T3H, bias_3H, cu_seqlens_S1, context_TH, lse_NT, heads: int, max_seqlen: int, dropout: float,
    seed, site: int,
) -> Saved:  # fmt: skip
    """Gradients of qkv (T, 3H) and bias ((3H,), or (0,) without one) by Triton."""
    qkv_T3H, cu_seqlens_S1 = _dense_rows(qkv_T3H), cu_seqlens_S1.contiguous()
    T, S, H3 = qkv_T3H.shape[0], cu_seqlens_S1.shape[0] - 1, qkv_T3H.shape[1]
    biases = 0 if bias_3H is None else H3
    if S == 0 or max_seqlen == 0:
        return qkv_T3H.new_zeros(T, H3), qkv_T3H.new_zeros(biases)
    options = _launch_options(qkv_T3H, bias_3H, heads, dropout, backward=True)
    single, key_blocks = max_seqlen <= KEY_BLOCK, triton.cdiv(max_seqlen, KEY_BLOCK)
    query_blocks = triton.cdiv(max_seqlen, options["M"])
    grad_qkv_T3H = qkv_T3H.new_empty(T, H3)
    # Of each block, one row; those of several have holes, since no block has both, and a short sequence lacks some.
    rows = S * max(key_blocks, 1 if single else query_blocks)
    sums = (torch.empty if single else torch.zeros)(rows, 1, biases, dtype=torch.float32, device=qkv_T3H.device)
    bias = qkv_T3H if bias_3H is None else bias_3H.contiguous()
    arguments = (
        grad_context_TH.contiguous(), qkv_T3H, bias, cu_seqlens_S1, cu_seqlens_S1 if seed is None else seed,
        context_TH.contiguous(), lse_NT, grad_qkv_T3H, sums, *_numbers(qkv_T3H, heads, dropout, site),
    )  # fmt: skip
    _key_backward_kernel[((S + 1) * heads, key_blocks)](*arguments, **options, SINGLE=single)
    if not single:
        _query_backward_kernel[(S * heads, query_blocks)](*arguments, **options)
    return grad_qkv_T3H, *column_sums(sums, qkv_T3H.dtype)
