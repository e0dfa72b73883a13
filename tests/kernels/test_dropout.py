"""The dropout generator: Philox's published answers, its layout, its Triton form in the interpreter, its rate."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from fashionbert_fast.kernels import dropout

TRITON_CHECK = """
import torch, triton, triton.language as tl
from fashionbert_fast.kernels.dropout import keep_reference, threshold_of
from fashionbert_fast.kernels.triton.dropout import keep_tile

@triton.jit
def kernel(out, seed_pointer, site, plane, threshold, ROWS: tl.constexpr, BLOCKS: tl.constexpr):
    rows = 5 + tl.arange(0, ROWS)
    keep = keep_tile(tl.load(seed_pointer), site, plane, rows, 1, threshold, ROWS, BLOCKS)
    place = tl.arange(0, ROWS)[:, None] * (BLOCKS * 128) + tl.arange(0, BLOCKS * 128)[None, :]
    tl.store(out + place, keep.to(tl.int8))

seed = 2**61 + 987654321987
out = torch.empty(4, 256, dtype=torch.int8)
kernel[(1,)](out, torch.tensor([seed]), 7, 3, threshold_of(0.3), 4, 2)
expected = keep_reference(seed, 7, torch.arange(5, 9), 384, 0.3, plane=3)[:, 128:]
assert torch.equal(out.bool(), expected), (out[0, :32], expected[0, :32].int())
"""


def test_philox_matches_the_published_answers(monkeypatch):
    """Random123's known answers for philox4x32-10: counter and key all zeros, then all ones. Draws are their halves."""
    monkeypatch.setattr(dropout, "ROUNDS", 10)
    for words, counter, key in (
        ((0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8), 0, 0),
        ((0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD), 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF),
    ):
        monkeypatch.setattr(torch, "arange", lambda n, c=counter: torch.full((n,), c))
        drawn = [[w & 0xFFFF, w >> 16] for w in words]
        flat = [half for pair in drawn for half in pair]
        for p16 in sorted(flat):  # the threshold at each draw: exactly those below it are dropped
            keep = dropout.keep_reference(key, counter, torch.tensor([counter]), 128, p16 / 65536, plane=counter)
            assert keep[0, ::16].tolist() == [half >= p16 for half in flat]


def test_triton_draws_the_same_mask():
    result = subprocess.run(
        [sys.executable, "-c", TRITON_CHECK], capture_output=True, text=True, env=os.environ | {"TRITON_INTERPRET": "1"}
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_rate_and_independence(p):
    rows = torch.arange(400)
    keep = dropout.keep_reference(12345, 1, rows, 500, p).double()
    assert abs(keep.mean().item() - (1 - p)) < 0.004  # 3 standard deviations of 200,000 draws
    assert abs(keep.mean().item() * dropout.scale_of(p) - (p < 1)) < 0.01
    if p == 0.5:
        other = dropout.keep_reference(12345, 2, rows, 500, p).double()
        for a, b in ((keep, other), (keep[1:], keep[:-1]), (keep[:, 1:], keep[:, :-1])):
            assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()) < 0.01


def test_seeds_differ_and_follow_torch():
    torch.manual_seed(3)
    first, second = dropout.draw_seed("cpu"), dropout.draw_seed("cpu")
    assert first.shape == (1,) and first.dtype == torch.int64 and first != second
    torch.manual_seed(3)
    assert dropout.draw_seed("cpu") == first
