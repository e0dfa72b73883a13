"""FLOPs and bytes of every operator that a step calls, counted while it runs.

Bytes: each distinct tensor that an operator reads or writes counts once, as large as it is; of one that is gathered
from, the rows taken. It is what an operator must move, not what caches let through twice.

FLOPs: a product of (m x k) by (k x n) is 2 m k n. Attention over sequences of n tokens and H features is 4 n^2 H
forward, and 10 n^2 H backward, where the scores are computed again. What is left is memory's business: one for each
element read or written, whichever are more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

GATHERS = {"aten::index_select", "aten::embedding", "aten::gather", "aten::index"}
ALLOCATES = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided"}
OVERWRITES = {"aten::copy_", "aten::zero_", "aten::fill_", "aten::_foreach_copy_", "aten::_foreach_zero_"}


@dataclass
class Count:
    calls: int = 0
    flops: float = 0.0
    bytes: float = 0.0


def _attention(factor: int) -> Callable[[dict, list], float]:
    def flops(given: dict, _) -> float:
        lengths_S = given["cu_seqlens"].diff().double()
        width = given["qkv"].shape[1] / 3
        return factor * float((lengths_S**2).sum()) * width

    return flops


def _linear_loss(given: dict, _) -> float:
    """Logits, and where gradients are kept nothing more: their products are `linear_residual_backward`'s."""
    return 2.0 * len(given["hidden"]) * given["weight"].numel()


def _patch_products(times: Callable[[dict], int]) -> Callable[[dict, list], float]:
    def flops(given: dict, _) -> float:
        unmasked = int((~given["patch_mask"].bool()).sum())
        return 2.0 * times(given) * unmasked * given["weight"].numel()

    return flops


# Of this project: schema -> FLOPs of its arguments by name and its outputs.
FORMULAS: dict[str, Callable[[dict, list], float]] = {
    "packed_attention": _attention(4),
    "packed_attention_backward": _attention(10),
    "linear_cross_entropy": _linear_loss,
    "linear_patch_kld": _linear_loss,
    "linear_residual_backward": lambda given, _: 4.0 * len(given["hidden"]) * given["weight"].numel(),
    "masked_patch_embed": _patch_products(lambda _: 1),
    "masked_patch_embed_backward": _patch_products(
        lambda given: int(given["weight_gradient"]) + int(given["features_gradient"])
    ),
}


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _tensors(value: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


class Work(TorchDispatchMode):
    """Counts while it is on. ``counts``: operator as traces name it (``aten::mm``) -> its calls together."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, Count] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name, schema = func._schema.name, func._schema
        given = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | (kwargs or {})
        written = [
            tensor
            for argument in schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write
            for tensor in _tensors(given.get(argument.name))
        ]
        is_view = not written and any(result.alias_info is not None for result in schema.returns)
        if not is_view and name not in ALLOCATES:
            count = self.counts.setdefault(name, Count())
            count.calls += 1
            count.bytes += self._bytes(name, given, out, written)
            count.flops += self._flops(func, name, args, kwargs or {}, given, out, written)
        return out

    def _bytes(self, name: str, given: dict, out: object, written: list[torch.Tensor]) -> float:
        made = {id(tensor): tensor for tensor in [*_tensors(out), *written]}
        total = sum(map(_size, made.values()))
        if name in GATHERS:
            return 2 * total
        read = {id(tensor): tensor for tensor in _tensors(list(given.values())) if tensor.dim() or tensor.numel()}
        if name in OVERWRITES:
            read = {key: tensor for key, tensor in read.items() if key not in made}
        return total + sum(map(_size, read.values()))

    def _flops(self, func, name: str, args, kwargs, given: dict, out: object, written: list[torch.Tensor]) -> float:
        formula = FORMULAS.get(name.removeprefix("fashionbert_fast::")) if name.startswith("fashionbert_fast") else None
        if formula is not None:
            return formula(given, _tensors(out))
        if func.overloadpacket in flop_registry:
            return float(flop_registry[func.overloadpacket](*args, **kwargs, out_val=out))
        made = {id(tensor): tensor for tensor in [*_tensors(out), *written]}
        read = {id(tensor): tensor for tensor in _tensors(list(given.values()))} if name not in GATHERS else {}
        return float(max(sum(tensor.numel() for tensor in some.values()) for some in (made, read)))
