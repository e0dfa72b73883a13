"""min_norm_weights against plain PyTorch (the reference the tests use)."""

from __future__ import annotations

import torch

from benchmarks.measure import Row, compare
from fashionbert_fast.kernels import min_norm_weights
from fashionbert_fast.kernels.min_norm_weights import min_norm_weights_reference


def rows(device: torch.device, quick: bool) -> list[Row]:
    """One row: three tasks whose minimiser is inside the triangle, float32."""
    gram_TT = torch.tensor([[4.0, 0.1, 0.2], [0.1, 1.0, -0.3], [0.2, -0.3, 2.0]], device=device)
    torch.testing.assert_close(min_norm_weights(gram_TT), min_norm_weights_reference(gram_TT), atol=1e-6, rtol=1e-5)
    return [
        compare(
            "min_norm_weights T=3 float32",
            "plain PyTorch",
            lambda: min_norm_weights(gram_TT),
            lambda: min_norm_weights_reference(gram_TT),
            target=5.0,
            device=device,
            pairs=7 if quick else 21,
        )
    ]
