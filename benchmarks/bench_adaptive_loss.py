"""adaptive_loss, forward and backward, against plain PyTorch (the reference the tests use)."""

from __future__ import annotations

import torch

from benchmarks.measure import Row, compare
from fashionbert_fast.kernels import adaptive_loss
from fashionbert_fast.kernels.adaptive_loss import adaptive_loss_reference


def _step(function):
    def run(losses_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        losses_T = losses_T.detach().requires_grad_()
        loss, weights_T = function(losses_T)
        (gradient_T,) = torch.autograd.grad(loss, losses_T)
        return weights_T, gradient_T

    return run


def rows(device: torch.device, quick: bool) -> list[Row]:
    """One row: T = 3, float32, forward and backward."""
    losses_T = torch.tensor([7.0, 0.7, 0.05], device=device)
    ours, plain = _step(adaptive_loss), _step(adaptive_loss_reference)
    for mine, theirs in zip(ours(losses_T), plain(losses_T), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)
    return [
        compare(
            "adaptive_loss T=3 float32 forward+backward", "plain PyTorch",
            lambda: ours(losses_T), lambda: plain(losses_T), target=5.0, device=device, pairs=7 if quick else 21,
        )
    ]  # fmt: skip
