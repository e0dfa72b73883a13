"""Dropout's mask in Triton: kernels/dropout.py has the formula."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def keep_tile(seed, site, plane, rows, first_block, threshold, ROWS: tl.constexpr, BLOCKS: tl.constexpr):
    """(ROWS, 128 BLOCKS) bool tile: the columns from 128 ``first_block`` on, for the (ROWS,) row numbers ``rows``."""
    call = first_block * 16 + tl.arange(0, BLOCKS * 16)
    c0 = tl.broadcast_to(call[None, :], (ROWS, BLOCKS * 16)).to(tl.uint32)
    c1 = tl.broadcast_to(rows[:, None], (ROWS, BLOCKS * 16)).to(tl.uint32)
    zero = c0 * 0
    w0, w1, w2, w3 = tl.philox(seed, c0, c1, zero + site, zero + plane, 7)
    even = tl.join(tl.join(w0 & 0xFFFF, w0 >> 16), tl.join(w2 & 0xFFFF, w2 >> 16))  # (.., half, word / 2)
    odd = tl.join(tl.join(w1 & 0xFFFF, w1 >> 16), tl.join(w3 & 0xFFFF, w3 >> 16))
    draws = tl.reshape(tl.join(even, odd), (ROWS, BLOCKS, 16, 2, 2, 2))  # (.., call, half, word / 2, word % 2)
    draws = tl.reshape(tl.permute(draws, (0, 1, 4, 5, 3, 2)), (ROWS, BLOCKS * 128))
    return draws >= threshold
