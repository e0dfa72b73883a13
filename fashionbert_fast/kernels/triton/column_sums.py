"""Sums over rows of what the programs of a backward left, in their order: one launch for the gradients of all vectors.

Shapes: R rows, W columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

ROWS, COLUMNS = 32, 32  # a tile: rows wait for one another, so they are many, and a line of float32 is 32 columns


@triton.jit(do_not_specialize=["height"])
def _sum_kernel(
    sums, first, second, third, height, width, VECTORS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Program (block of columns, vector): ``sums`` is (height, VECTORS, width) float32."""
    vector = tl.program_id(1)
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for from_row in range(0, height, ROWS):
        rows = from_row + tl.arange(0, ROWS)
        offsets = (rows.to(tl.int64)[:, None] * VECTORS + vector) * width + columns[None, :]
        total += tl.load(sums + offsets, mask=(rows < height)[:, None] & inside[None, :], other=0.0)
    result = tl.sum(total, 0).to(first.dtype.element_ty)
    if vector == 0:
        tl.store(first + columns, result, mask=inside)
    elif vector == 1:
        tl.store(second + columns, result, mask=inside)
    else:
        tl.store(third + columns, result, mask=inside)


def column_sums(sums_RVW: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """The (W,) sums over R of each of the V <= 3 vectors of ``sums_RVW``, float32, as tensors of ``dtype``."""
    R, V, W = sums_RVW.shape
    results = [sums_RVW.new_empty(W, dtype=dtype) for _ in range(V)]
    if W > 0:
        pointers = (results * 3)[:3]
        _sum_kernel[(triton.cdiv(W, COLUMNS), V)](sums_RVW, *pointers, R, W, V, ROWS, COLUMNS)
    return results
