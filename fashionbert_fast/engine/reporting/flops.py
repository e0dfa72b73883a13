"""Useful work of a step, and the share of the device's rate it is done at (MFU).

Only what the task needs counts: no padding, MLM and MPM heads on masked rows only, masked patches not projected. A
product of (m x k) by (k x n) is 2 m k n FLOPs forward and twice that backward.

Per pair of n tokens (title and patches), hidden H, feed-forward F, N layers, D features, V words:
    encoder     3 * 2 * n * N * (4 H^2 + 2 H F)
    attention   3 * 4 * n^2 * N * H
    patches     2 * 2 * (unmasked patches) * D * H      (no gradient goes to the features)
    MLM head    3 * 2 * (masked tokens) * (H^2 + H V)
    MPM head    3 * 2 * (masked patches) * H * D
"""

from __future__ import annotations

import time

import torch

from fashionbert_fast.data.batch import StepCounts
from fashionbert_fast.model.config import FashionBertConfig

# Dense tensor-core peaks of the data sheets, FLOP/s. A device not listed is measured instead.
BF16_PEAKS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "V100": 125e12}


def useful_flops(config: FashionBertConfig, counts: StepCounts) -> float:
    """FLOPs of the formula above."""
    H, F, N = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    D, V = config.patch_feature_size, config.vocab_size
    encoder = 6 * counts.tokens * N * (4 * H * H + 2 * H * F) + 12 * counts.squared_lengths * N * H
    heads = 6 * counts.masked_tokens * (H * H + H * V) + 6 * counts.masked_patches * H * D
    return encoder + heads + 4 * (counts.patches - counts.masked_patches) * D * H


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s to measure against: the data sheet's bf16 peak on a known GPU, else a matrix product timed now."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, peak in BF16_PEAKS.items():
            if known in name:
                return peak
    size, repeats = (8192, 5) if device.type == "cuda" else (1024, 3)
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(repeats + 1):
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
