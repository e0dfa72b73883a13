"""What the tests of `linear_patch_kld` and `linear_cross_entropy` share: random problems, errors against float64."""

from __future__ import annotations

import torch

NARROW = (torch.float32, torch.bfloat16, torch.float16)


def picker(generator: torch.Generator):
    return lambda options: options[int(torch.randint(len(options), (), generator=generator))]


def matrix(rows: int, width: int, layout: str, generator: torch.Generator) -> torch.Tensor:
    """(rows, width) float64 normal numbers, in memory as ``layout`` says: dense, columns or transposed."""
    if layout == "columns":
        return torch.randn(rows, 2 * width, generator=generator, dtype=torch.float64)[:, ::2]
    if layout == "transposed":
        return torch.randn(width, rows, generator=generator, dtype=torch.float64).T
    return torch.randn(rows, width, generator=generator, dtype=torch.float64)


def cast(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``x`` in ``dtype`` with its strides (`Tensor.to` would make it dense)."""
    return torch.empty_strided(x.shape, x.stride(), dtype=dtype).copy_(x.clamp(-6e4, 6e4))


def loss_and_gradients(function, parameters, *rest, scale: float = 3.0):
    """Loss and gradients of ``parameters``, the incoming gradient being ``scale``."""
    parameters = [p.detach().requires_grad_() for p in parameters]
    loss = function(*parameters, *rest)
    return [loss.detach(), *torch.autograd.grad(loss * scale, parameters)]


def assert_errs_at_most_twice(results: list[tuple[list, list, list]], floor: float = 0.0) -> None:
    """``results``: (ours, plain PyTorch's, exact) a case. Worst and mean error of each output are compared, in units of
    its largest exact value (of 1e-3 if that is less: there float32 rounds by more than a thousandth of it)."""

    def errors(one, exact):
        pairs = zip(one, exact, strict=True)
        return [
            float((a.double() - b).abs().max() / b.abs().max().clamp_min(1e-3)) if b.numel() else 0.0 for a, b in pairs
        ]

    ours = torch.tensor([errors(mine, exact) for mine, _, exact in results])
    plain = torch.tensor([errors(theirs, exact) for _, theirs, exact in results])
    assert (ours.amax(0) <= 2 * plain.amax(0) + floor).all(), (ours.amax(0), plain.amax(0))
    assert (ours.mean(0) <= 2 * plain.mean(0) + floor).all(), (ours.mean(0), plain.mean(0))
