"""What the measurements of `linear_patch_kld` and `linear_cross_entropy` share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from benchmarks.measure import Row, check_same, compare, compare_memory, forward_backward, in_float64

# On a GPU 16 times the two smaller, or launching is the time: plain PyTorch's float32 logits of BERT's vocabulary,
# their logarithms and both gradients take 8 GB of 16,384 rows.
ROWS = {"cpu": (256, 1024, 4096, 16384), "cuda": (4096, 16384)}
CHUNK = 1024  # rows of the float64 result at once: 0.25 GB for each copy of such logits


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


def _exact(
    loss: LinearLoss, parameters: tuple[torch.Tensor, ...], rest: tuple[torch.Tensor, ...]
) -> list[torch.Tensor]:
    """Loss and gradients in float64, a chunk of rows at a time, as the loss is a sum over them: of the first of
    ``parameters`` and the last of ``rest``."""
    hidden_MH, *shared = in_float64(parameters)
    *others, index_M = rest
    total, of_hidden, of_shared = torch.zeros((), dtype=torch.float64, device=hidden_MH.device), [], None
    for part_KH, index_K in zip(hidden_MH.split(CHUNK), index_M.split(CHUNK), strict=True):
        value, first, *gradients = forward_backward(loss.reference, (part_KH, *shared), *others, index_K)()
        total += value
        of_hidden.append(first)
        of_shared = gradients if of_shared is None else torch._foreach_add(of_shared, gradients)
    return [total, torch.cat(of_hidden), *(of_shared or [])]


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
    exact, result = _exact(loss, parameters, rest), []
    terms = max(parameters[0].shape[0], parameters[1].shape[0])  # over rows, and of a row
    for peer, (theirs, target) in peers.items():
        check_same(ours(), theirs(), exact, terms)
        result.append(compare(case, peer, ours, theirs, target=target, **repeats))
    bare = _bare_products(*parameters[:2])
    result.append(compare(case, "bare matrix products", ours, bare, target=loss.bare[gpu], **repeats))
    memory = compare_memory(f"{case}, memory", "plain PyTorch", ours, plain, target=loss.memory, device=device)
    return [*result, memory]
