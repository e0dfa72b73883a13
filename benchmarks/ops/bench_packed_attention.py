"""packed_attention, forward and backward, against SDPA with what a layer does around it: bias, head split and merge.

Sequences are 64 patches and 64 + N(25, 10) tokens in all, the text within [8, 64]; those of equal length have 89.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.measure import Row, check_same, compare, in_float64
from fashionbert_fast.kernels import packed_attention

N, E = 12, 64
H = N * E
PATCHES, EQUAL, PADDED = 64, 89, 128
# On a GPU 16 times as many, or launching is the time: scores of 1,024 padded sequences are 1.6 GB in float64.
SEQUENCES = {"cpu": (32, 64), "cuda": (512, 1024)}
DROPOUTS = (0.0, 0.1)
# peer -> times faster to be
PEERS = {"SDPA padded, with a mask": 1.5, "SDPA of equal lengths": 1.0}


def _lengths(sequences: int, equal: bool) -> torch.Tensor:
    if equal:
        return torch.full((sequences,), EQUAL)
    generator = torch.Generator().manual_seed(0)
    return PATCHES + (25 + 10 * torch.randn(sequences, generator=generator)).round().long().clamp(8, 64)


def _sdpa(rows_BL3H, mask_B11L, dropout: float):
    q, k, v = rows_BL3H.unflatten(-1, (3, N, E)).permute(2, 0, 3, 1, 4)
    context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_B11L, dropout_p=dropout)
    return context.transpose(1, 2).flatten(2)


def _step(function, qkv, bias):
    """Context and gradients of qkv and bias."""
    context = function(qkv, bias)
    return context.detach(), *torch.autograd.grad(context, (qkv, bias), torch.ones_like(context))


def _row(peer: str, sequences: int, dtype, dropout: float, device, pairs: int) -> Row:
    equal = peer == "SDPA of equal lengths"
    lengths = _lengths(sequences, equal).to(device)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int()
    longest, T = int(lengths.max()), int(lengths.sum())
    width = EQUAL if equal else PADDED
    inside_BL = torch.arange(width, device=device)[None] < lengths[:, None]
    generator = torch.Generator(device).manual_seed(1)
    bias = torch.randn(3 * H, generator=generator, device=device).to(dtype).requires_grad_()
    packed = torch.randn(T, 3 * H, generator=generator, device=device).to(dtype).requires_grad_()
    padded = packed.new_zeros(sequences, width, 3 * H).masked_scatter(inside_BL[..., None], packed.detach())
    padded.requires_grad_()
    mask = None if equal else inside_BL[:, None, None]
    seed = torch.tensor([5], device=device)

    def ours(p):
        return lambda x, b: packed_attention(x, offsets, N, max_seqlen=longest, bias_3H=b, dropout=p, seed=seed)

    def theirs(p):
        return lambda x, b: _sdpa(x + b, mask, p)

    # What padding adds to the peer's bias gradient is none of ours: compare with gradients from real tokens only.
    def kept(*inputs):
        masked = _step(lambda x, b: torch.where(inside_BL[..., None], theirs(0.0)(x, b), 0), *inputs)
        return [x[inside_BL] for x in masked[:2]]

    check_same(_step(ours(0.0), packed, bias)[:2], kept(padded, bias), kept(*in_float64([padded, bias])), terms=T)
    kind = f"{EQUAL} tokens each" if equal else f"{longest} tokens at most"
    name = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}[dtype]
    return compare(
        f"packed_attention {sequences} sequences, {kind}, {name}, dropout {dropout:g}, forward+backward",
        peer,
        lambda: _step(ours(dropout), packed, bias),
        lambda: _step(theirs(dropout), padded, bias),
        target=PEERS[peer],
        device=device,
        pairs=pairs,
    )


def rows(device: torch.device, quick: bool) -> list[Row]:
    """A row for each peer, number of sequences, dtype and dropout; ``quick``: the fewest sequences, fewer pairs."""
    return [
        _row(peer, sequences, dtype, dropout, device, 5 if quick else 15)
        for sequences in SEQUENCES[device.type][: 1 if quick else None]
        for dtype in (torch.float32, torch.bfloat16)
        for dropout in DROPOUTS
        for peer in PEERS
    ]
