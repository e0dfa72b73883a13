"""`reduction=` of the losses, as torch.nn.functional has it: the mean over the rows that count, or their sum."""

from __future__ import annotations

import torch

from fashionbert_fast.kernels._library import IGNORED


def check_reduction(reduction: str) -> None:
    """ValueError unless a loss can be reduced so."""
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}: the rows' losses are not kept")


def rows_that_count(index_M: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """How many labels or target rows are not -100, a scalar of ``dtype``; 1 where none is, so that a mean of none is 0
    (torch's is NaN). No host synchronisation."""
    return (index_M != IGNORED).sum().clamp_min(1).to(dtype)
