"""What the measurements of `linear_patch_kld` and `linear_cross_entropy` share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from benchmarks.measure import Row, check_same, compare, compare_memory, forward_backward

ROWS = (256, 1024, 4096, 16384)


@dataclass
class LinearLoss:
    """A loss of a linear layer, and what it is to be: times better than each peer, on a CPU and on a GPU."""

    function: Callable[..., torch.Tensor]
    reference: Callable[..., torch.Tensor]
    plain: tuple[float, float]
    compiled: tuple[float, float]
    bare: tuple[float, float]  # of the speed of the three products alone
    memory: float
    others: dict[str, tuple[Callable[..., torch.Tensor], float]] = field(default_factory=dict)  # function, target


def dtypes(device: torch.device) -> dict[str, torch.dtype]:
    """By name. Without float16 on a CPU, whose float16 products are slower than float32 ones: nobody trains so."""
    names = ("float32", "bfloat16", "float16") if device.type == "cuda" else ("float32", "bfloat16")
    return {name: getattr(torch, name) for name in names}


def _bare_products(hidden_MH: torch.Tensor, weight_DH: torch.Tensor) -> Callable[[], object]:
    """What no implementation can do without: the logits and the two gradients."""
    gradient_MD = hidden_MH @ weight_DH.T
    return lambda: (hidden_MH @ weight_DH.T, gradient_MD @ weight_DH, gradient_MD.T @ hidden_MH)


def compare_linear_loss(
    loss: LinearLoss, case: str, parameters: tuple[torch.Tensor, ...], *rest: torch.Tensor, quick: bool
) -> list[Row]:
    """Forward and backward of ``loss.function(*parameters, *rest)`` against plain PyTorch, torch.compile of it, its
    bare products (of the first two parameters) and ``loss.others``, and its memory. AssertionError where two differ."""
    device = parameters[0].device
    gpu, repeats = device.type == "cuda", {"device": device, "pairs": 5 if quick else 15}
    ours, plain = (forward_backward(f, parameters, *rest) for f in (loss.function, loss.reference))
    compiled = forward_backward(torch.compile(loss.reference, dynamic=False), parameters, *rest)
    peers = {"plain PyTorch": (plain, loss.plain[gpu]), "torch.compile": (compiled, loss.compiled[gpu])}
    for name, (function, target) in loss.others.items():
        peers[name] = (forward_backward(function, parameters, *rest), target)
    result = []
    for peer, (theirs, target) in peers.items():
        check_same(ours(), theirs())
        result.append(compare(case, peer, ours, theirs, target=target, **repeats))
    bare = _bare_products(*parameters[:2])
    result.append(compare(case, "bare matrix products", ours, bare, target=loss.bare[gpu], **repeats))
    memory = compare_memory(f"{case}, memory", "plain PyTorch", ours, plain, target=loss.memory, device=device)
    return [*result, memory]
