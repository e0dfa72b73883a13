"""The bound of errors that the operators' tests use: right sums keep it in every order, sums in bfloat16 do not."""

from __future__ import annotations

import pytest
import torch
from row_cases import allowed_error, relative_errors

M, K, N = 64, 768, 96


def _summed(a_MK: torch.Tensor, b_KN: torch.Tensor, step: int, dtype: torch.dtype) -> torch.Tensor:
    """a @ b, ``step`` terms at a time, the running sum being of ``dtype``."""
    sum_MN = torch.zeros(M, N, dtype=dtype)
    for first in range(0, K, step):
        part_MN = a_MK[:, first : first + step].float() @ b_KN[first : first + step].float()
        sum_MN = (sum_MN.float() + part_MN).to(dtype)
    return sum_MN


def _error(step: int, running: torch.dtype, dtype: torch.dtype, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    a_MK, b_KN = (torch.randn(shape, generator=generator).to(dtype) for shape in ((M, K), (K, N)))
    result = _summed(a_MK, b_KN, step, running).to(dtype)
    return relative_errors([result], [a_MK.double() @ b_KN.double()])[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("step", [1, 16, 256, K])
def test_float32_sums_keep_the_bound_in_any_order(dtype, step):
    assert max(_error(step, torch.float32, dtype, seed) for seed in range(5)) <= allowed_error(dtype, K)


@pytest.mark.parametrize("step", [1, 16, 32])
def test_bfloat16_sums_exceed_the_bound(step):
    for dtype in (torch.float32, torch.bfloat16):
        assert min(_error(step, torch.bfloat16, dtype, seed) for seed in range(5)) > allowed_error(dtype, K)
