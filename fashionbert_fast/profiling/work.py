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


# Of this project, and what torch has no formula of: schema -> FLOPs of its arguments by name and its outputs.
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
    "aten::addmm_": lambda given, _: 2.0 * given["mat1"].numel() * given["mat2"].shape[1],
}


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _tensors(value: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


@dataclass
class Call:
    """A call of an operator. read, made: its distinct tensors. moved: bytes read and bytes written."""

    name: str
    given: dict[str, object]
    read: list[torch.Tensor]
    made: list[torch.Tensor]
    moved: tuple[float, float]


def call_of(func, args: tuple, kwargs: dict, out: object) -> Call | None:
    """What a call worked on; None of a view and of an allocation."""
    name, schema = func._schema.name, func._schema
    given = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | kwargs
    written = [
        tensor
        for argument in schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
        for tensor in _tensors(given.get(argument.name))
    ]
    is_view = not written and any(result.alias_info is not None for result in schema.returns)
    if is_view or name in ALLOCATES:
        return None
    made = {id(tensor): tensor for tensor in [*_tensors(out), *written]}
    read = {id(tensor): tensor for tensor in _tensors(list(given.values())) if tensor.dim() or tensor.numel()}
    bytes_made = sum(map(_size, made.values()))
    if name in GATHERS:
        return Call(name, given, [], list(made.values()), (bytes_made, bytes_made))
    if name in OVERWRITES:
        read = {key: tensor for key, tensor in read.items() if key not in made}
    return Call(name, given, list(read.values()), list(made.values()), (sum(map(_size, read.values())), bytes_made))


class Work(TorchDispatchMode):
    """Counts while it is on. ``counts``: operator as traces name it (``aten::mm``) -> its calls together."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, Count] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        call = call_of(func, args, kwargs or {}, out)
        if call is not None:
            count = self.counts.setdefault(call.name, Count())
            count.calls += 1
            count.bytes += sum(call.moved)
            count.flops += _flops(func, args, kwargs or {}, call, out)
        return out


def _flops(func, args: tuple, kwargs: dict, call: Call, out: object) -> float:
    formula = FORMULAS.get(call.name.removeprefix("fashionbert_fast::"))
    if formula is not None:
        return formula(call.given, _tensors(out))
    if func.overloadpacket in flop_registry:
        return float(flop_registry[func.overloadpacket](*args, **kwargs, out_val=out))
    return float(max(sum(tensor.numel() for tensor in some) for some in (call.made, call.read)))
