"""adaptive_loss, forward and backward, against plain PyTorch (the reference the tests use).

A call of `torch.autograd.grad` costs a sixth of plain PyTorch's whole time before any operator runs, and with the
cheapest built-in operator more than a fifth: the first row cannot pass the second's peer, whatever we do. A training
step makes that call once for all its operators, so the third row shares it among 16 uses of the operator.
"""

from __future__ import annotations

import torch

from benchmarks.measure import Row, compare
from fashionbert_fast.kernels import adaptive_loss
from fashionbert_fast.kernels.adaptive_loss import adaptive_loss_reference

USES = 16


def _step(function, uses: int = 1):
    def run(losses_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        losses_T = losses_T.detach().requires_grad_()
        outputs = [function(losses_T) for _ in range(uses)]
        (gradient_T,) = torch.autograd.grad([loss for loss, _ in outputs], losses_T)
        return outputs[0][1], gradient_T

    return run


def _one_operator(losses_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return losses_T.sum(), losses_T


def rows(device: torch.device, quick: bool) -> list[Row]:
    """T = 3, float32, forward and backward: alone, beside one built-in operator, and as part of a larger graph."""
    losses_T = torch.tensor([7.0, 0.7, 0.05], device=device)
    ours, plain, floor = _step(adaptive_loss), _step(adaptive_loss_reference), _step(_one_operator)
    many, plain_many = _step(adaptive_loss, USES), _step(adaptive_loss_reference, USES)
    for mine, theirs in ((ours, plain), (many, plain_many)):
        for a, b in zip(mine(losses_T), theirs(losses_T), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6 * USES, rtol=1e-5)
    case, repeats = "adaptive_loss T=3 float32 forward+backward", {"device": device, "pairs": 7 if quick else 21}
    return [
        compare(case, "plain PyTorch", lambda: ours(losses_T), lambda: plain(losses_T), target=5.0, **repeats),
        compare(
            case,
            "floor: one built-in operator (sum)",
            lambda: ours(losses_T),
            lambda: floor(losses_T),
            target=0.75,
            **repeats,
        ),
        compare(
            f"{case}, {USES} in one graph",
            "plain PyTorch",
            lambda: many(losses_T),
            lambda: plain_many(losses_T),
            target=5.0,
            **repeats,
        ),
    ]
