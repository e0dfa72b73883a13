"""packed_attention: self-attention inside each of S sequences that lie packed along one axis, without padding.

Formula, of each sequence and head, with q, k, v the rows of qkv plus bias and E the width of a head:

    p = softmax(q k' / sqrt(E)),    context = dropout(p) v

The backward recomputes p from the saved log-sum-exp of each row (Dao et al. 2022) and dropout's mask from its counter;
with g the gradient of the context and m the mask times its scale:

    dp = m (g v'),    ds = p (dp - rowsum(p dp)),    dq = ds k / sqrt(E),    dk = ds' q / sqrt(E),    dv = (m p)' g

Shapes: T tokens of the packed axis, S sequences, N heads, E head width, H = N E.
"""

from __future__ import annotations

import itertools

import torch

from fashionbert_fast.kernels import dropout as dropouts
from fashionbert_fast.kernels._autocast import autocast
from fashionbert_fast.kernels._library import check_floating, check_same, reverse_mode_only
from fashionbert_fast.kernels.triton import packed_attention as on_gpu


# Reference -----------------------------------------------------------------------------------------------------------
def packed_attention_reference(
    qkv_T3H: torch.Tensor, cu_seqlens_S1: torch.Tensor, heads: int, *, max_seqlen: int | None = None,
    bias_3H: torch.Tensor | None = None, dropout: float = 0.0, seed: torch.Tensor | None = None, site: int = 0,
) -> torch.Tensor:  # fmt: skip
    """The formula in plain PyTorch, a sequence at a time, in float32 (float64 for float64 input)."""
    dtype = torch.float64 if qkv_T3H.dtype == torch.float64 else torch.float32
    T, E = qkv_T3H.shape[0], qkv_T3H.shape[1] // (3 * heads)
    rows_T3H = qkv_T3H.to(dtype) if bias_3H is None else qkv_T3H.to(dtype) + bias_3H.to(dtype)
    parts, cu_seqlens = [rows_T3H[:0, : heads * E]], cu_seqlens_S1.tolist()
    for first, last in itertools.pairwise(cu_seqlens):
        q_NLE, k_NLE, v_NLE = rows_T3H[first:last].view(-1, 3, heads, E).permute(1, 2, 0, 3)
        p_NLL = torch.softmax(q_NLE @ k_NLE.transpose(1, 2) / E**0.5, dim=-1)
        if dropout > 0:
            assert seed is not None
            tokens_NL = torch.arange(first, last).expand(heads, -1)
            plane_NL = torch.arange(heads)[:, None].expand_as(tokens_NL)
            keep_NLL = dropouts.keep_reference(int(seed), site, tokens_NL, last - first, dropout, plane_NL)
            p_NLL = torch.where(keep_NLL.to(p_NLL.device), p_NLL * dropouts.scale_of(dropout), 0)
        parts.append((p_NLL @ v_NLE).transpose(0, 1).reshape(last - first, heads * E))
    parts.append(rows_T3H.new_zeros(T - cu_seqlens[-1], heads * E))
    return torch.cat(parts).to(qkv_T3H.dtype)


# Registration; the CPU's kernels are csrc/cpu/packed_attention.cpp ---------------------------------------------------
torch.library.impl("fashionbert_fast::packed_attention", "CUDA")(on_gpu.launch_forward)
torch.library.impl("fashionbert_fast::packed_attention_backward", "CUDA")(on_gpu.launch_backward)


@torch.library.register_fake("fashionbert_fast::packed_attention")
def _(qkv_T3H, bias_3H, cu_seqlens_S1, heads, max_seqlen, dropout, seed, site):
    T, H = qkv_T3H.shape[0], qkv_T3H.shape[1] // 3
    dtype = torch.float64 if qkv_T3H.dtype == torch.float64 else torch.float32
    return qkv_T3H.new_empty(T, H), qkv_T3H.new_empty(heads, T, dtype=dtype)


@torch.library.register_fake("fashionbert_fast::packed_attention_backward")
def _(grad_context_TH, qkv_T3H, bias_3H, cu_seqlens_S1, context_TH, lse_NT, heads, max_seqlen, dropout, seed, site):
    return qkv_T3H.new_empty(qkv_T3H.shape), qkv_T3H.new_empty(0 if bias_3H is None else qkv_T3H.shape[1])


def _setup_context(ctx, inputs, output):
    qkv_T3H, bias_3H, cu_seqlens_S1, ctx.heads, ctx.max_seqlen, ctx.dropout, seed, ctx.site = inputs
    ctx.save_for_backward(qkv_T3H, bias_3H, cu_seqlens_S1, seed, *output)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_context_TH, _grad_lse_NT):
    if grad_context_TH is None:
        return (None,) * 8
    qkv_T3H, bias_3H, cu_seqlens_S1, seed, context_TH, lse_NT = ctx.saved_tensors
    grad_qkv_T3H, grad_bias_3H = torch.ops.fashionbert_fast.packed_attention_backward(
        grad_context_TH, qkv_T3H, bias_3H, cu_seqlens_S1, context_TH, lse_NT, ctx.heads, ctx.max_seqlen, ctx.dropout,
        seed, ctx.site,
    )  # fmt: skip
    return grad_qkv_T3H, None if bias_3H is None else grad_bias_3H, None, None, None, None, None, None


torch.library.register_autograd("fashionbert_fast::packed_attention", _backward, setup_context=_setup_context)


# Public function -----------------------------------------------------------------------------------------------------
@reverse_mode_only
@autocast()
def packed_attention(
    qkv_T3H: torch.Tensor, cu_seqlens_S1: torch.Tensor, heads: int, *, max_seqlen: int,
    bias_3H: torch.Tensor | None = None, dropout: float = 0.0, seed: torch.Tensor | None = None, site: int = 0,
) -> torch.Tensor:  # fmt: skip
    """Self-attention within each packed sequence, (T, H) in the dtype of ``qkv_T3H``; sums in float32.

    What scaled dot product attention with a block-diagonal mask gives. No host synchronisation on CUDA; the same bits
    on every run and on any number of threads. Gradients for ``qkv_T3H`` and ``bias_3H``.

    Args:
        qkv_T3H: (T, 3H) float32, bfloat16 or float16, on CPU or CUDA (float64 on CPU): each token's query, key and
            value, ``heads`` x E numbers each. T may exceed ``cu_seqlens_S1[-1]``: those rows of the result are zeros.
        cu_seqlens_S1: (S + 1,) int32, ascending from 0: tokens cu_seqlens[s] .. cu_seqlens[s + 1] are sequence s,
            maybe none.
        heads: N; H = N E. On CUDA E is at most 128.
        max_seqlen: at least the length of every sequence; up to 128 is fastest on CUDA. A length above it, or a
            ``cu_seqlens_S1`` that does not ascend from 0 to at most T, is a RuntimeError on CPU; on CUDA nobody looks,
            and the result is undefined.
        bias_3H: (3H,) in the dtype of ``qkv_T3H``, added to every row on the way in.
        dropout: probability in [0, 1] of dropping a probability: `kernels.dropout`'s element (site, plane = head,
            row = the query's token, column = the key's position in its sequence).
        seed: (1,) int64 on the device of ``qkv_T3H``, needed where ``dropout`` > 0.
        site: the place in the model that drops.

    Raises:
        ValueError: naming the argument whose shape, dtype, device or value is wrong.

    Example:
        >>> qkv_T3H = torch.randn(5, 3 * 8)  # of two sequences, of 2 and 3 tokens
        >>> packed_attention(qkv_T3H, torch.tensor([0, 2, 5], dtype=torch.int32), heads=2, max_seqlen=3).shape
        torch.Size([5, 8])
    """
    check_floating("qkv_T3H", qkv_T3H)
    if not isinstance(heads, int) or heads < 1:
        raise ValueError(f"heads must be a positive int, got {heads!r}")
    if qkv_T3H.dim() != 2 or qkv_T3H.shape[1] == 0 or qkv_T3H.shape[1] % (3 * heads):
        raise ValueError(f"qkv_T3H must have shape (T, 3 * {heads} heads * E), got {tuple(qkv_T3H.shape)}")
    if qkv_T3H.is_cuda and (qkv_T3H.dtype == torch.float64 or qkv_T3H.shape[1] > 3 * heads * 128):
        raise ValueError("qkv_T3H on CUDA must be float32, bfloat16 or float16 with heads at most 128 wide")
    if max_seqlen < 0:
        raise ValueError(f"max_seqlen must be at least the length of every sequence, got {max_seqlen}")
    _check_cu_seqlens(qkv_T3H, cu_seqlens_S1)
    if bias_3H is not None:
        check_floating("bias_3H", bias_3H)
        check_same("bias_3H", bias_3H, "qkv_T3H", qkv_T3H)
        if bias_3H.shape != qkv_T3H.shape[1:]:
            raise ValueError(f"bias_3H must have shape ({qkv_T3H.shape[1]},), got {tuple(bias_3H.shape)}")
    dropouts.check_dropout(seed, site, qkv_T3H.device, dropout=dropout)
    return torch.ops.fashionbert_fast.packed_attention(
        qkv_T3H, bias_3H, cu_seqlens_S1, heads, max_seqlen, float(dropout), seed if dropout > 0 else None, site
    )[0]


def _check_cu_seqlens(qkv_T3H: torch.Tensor, cu_seqlens_S1: torch.Tensor) -> None:
    if not isinstance(cu_seqlens_S1, torch.Tensor) or cu_seqlens_S1.dtype != torch.int32 or cu_seqlens_S1.dim() != 1:
        raise ValueError("cu_seqlens_S1 must be an int32 vector: where each sequence starts, and where the last ends")
    if cu_seqlens_S1.shape[0] == 0:
        raise ValueError("cu_seqlens_S1 is empty: it has one number more than there are sequences")
    if cu_seqlens_S1.device != qkv_T3H.device:
        raise ValueError(
            f"cu_seqlens_S1 is on {cu_seqlens_S1.device} but qkv_T3H is on {qkv_T3H.device}: move one of them"
        )
