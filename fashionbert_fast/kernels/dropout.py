"""Dropout by a counter: the mask is a function of (seed, site, plane, row, column), so a backward draws it again.

Formula: Philox4x32 with 7 rounds (Salmon et al. 2011), key = seed, counter = (call, row, site, plane). A call gives 8
draws of 16 bits; column 128 b + 16 j + i is draw j of call 16 b + i. An element is kept where its draw is at least
round(65536 p), and multiplied by 65536 / (65536 - round(65536 p)). The operators share it: csrc/common/dropout.h in C++
and CUDA, kernels/triton/dropout.py in Triton; a site is a place in the model that drops, a plane a head of attention.
"""

from __future__ import annotations

import torch

BLOCK = 128  # columns that 16 calls cover
ROUNDS = 7  # the fewest that pass BigCrush


def threshold_of(p: float) -> int:
    """Draws below it drop: round(65536 p), rounded half up as in C++."""
    return int(p * 65536 + 0.5)


def scale_of(p: float) -> float:
    """What the kept elements are multiplied by; 0 where none is kept."""
    threshold = threshold_of(p)
    return 65536 / (65536 - threshold) if threshold < 65536 else 0.0


def draw_seed(device: torch.device | str) -> torch.Tensor:
    """A fresh (1,) int64 seed on ``device`` from torch's generator there: no host synchronisation, capturable."""
    return torch.randint(0, 2**62, (1,), device=device)


def check_dropout(
    seed: torch.Tensor | None, site: int, device: torch.device, *, sites: int = 1, **dropouts: float
) -> None:
    """ValueError naming the argument unless an operator on ``device`` can drop.

    Args:
        site: the first of ``sites`` of the operator. dropouts: its probabilities, by the names of its arguments.
    """
    for name, p in dropouts.items():
        if not 0 <= p <= 1:
            raise ValueError(f"{name} must be a probability from 0 to 1, got {p}")
    if not 0 <= site <= 2**31 - sites:
        raise ValueError(f"site must be from 0 to 2^31 - {sites}, got {site}")
    if seed is None and not any(dropouts.values()):
        return
    if not isinstance(seed, torch.Tensor):
        raise ValueError("seed is required where something drops: kernels.dropout.draw_seed gives one")
    if seed.shape != (1,) or seed.dtype != torch.int64 or seed.device != device:
        got = f"{seed.dtype} {tuple(seed.shape)} on {seed.device}"
        raise ValueError(f"seed must be int64 of shape (1,) on {device}, got {got}")


# Reference -----------------------------------------------------------------------------------------------------------
def keep_reference(
    seed: int, site: int, rows: torch.Tensor, columns: int, p: float, plane: torch.Tensor | int = 0
) -> torch.Tensor:
    """True where an element is kept, (*rows.shape, columns) bool, for row numbers ``rows`` (and planes like them)."""
    blocks = -(-columns // BLOCK)
    c0 = torch.arange(blocks * 16).expand(*rows.shape, -1)
    c1 = rows[..., None].expand_as(c0)
    c2 = torch.full_like(c0, site)
    c3 = torch.as_tensor(plane)[..., None].expand_as(c0)
    k0, k1, low = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF, 0xFFFFFFFF
    for _ in range(ROUNDS):
        (a_high, a_low), (b_high, b_low) = _product(0xD2511F53, c0), _product(0xCD9E8D57, c2)
        c0, c1, c2, c3 = b_high ^ c1 ^ k0, b_low, a_high ^ c3 ^ k1, a_low
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    halves = [half for word in (c0, c1, c2, c3) for half in (word & 0xFFFF, word >> 16)]
    draws = torch.stack([half.unflatten(-1, (blocks, 16)) for half in halves], dim=-2)
    return draws.flatten(-3)[..., :columns] >= threshold_of(p)


def _product(a: int, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 32 bits of a 32 x 32 bit product, in int64 without overflow."""
    low_part, high_part = (a & 0xFFFF) * b, (a >> 16) * b  # 48 bits each
    middle = (low_part >> 16) + high_part
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low_part & 0xFFFF)
