"""Bytes that each kernel of an encoder layer reads and writes on a GPU, forward and backward, and the least possible:

    python -m benchmarks.models.layer_bytes --json benchmarks/results/layer_bytes.json

`kernels` lists them by formula, from the code of the launchers; `executed` runs the very launchers in Triton's
interpreter and counts the bytes that they touch, every operator of torch's between them included. A test holds one
against the other to the byte, so a pass over memory that nobody wrote down fails it.

The floor is what separate matmuls and fused element-wise passes allow: a matmul reads its two operands and writes its
product (the backward's, where a residual joins, adds to the residual's gradient in place), and between two matmuls one
pass reads the tensors of its formula once and writes its results once. It has no statistics, no log-sum-exps, no
partial sums, no seeds. A tensor that a kernel reads twice counts once: that much a cache does.

Shapes: T rows of the packed axis, of which U belong to the S sequences, H hidden, F feed-forward, N heads.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from benchmarks.measure import Row, commit, installed_versions
from fashionbert_fast.errors import InputError
from fashionbert_fast.files import check_writable, write_json

AIM = 1.25  # of the floor, at most
FLOAT32, SEED, INDEX = 4, 8, 4  # bytes of a number
OPERATORS = ("packed_attention", "dropout_add_layer_norm", "bias_gelu")


@dataclass(frozen=True)
class Layer:
    """Sizes of a layer and of its batch; ``item``: bytes of a weight or an activation."""

    T: int
    U: int
    S: int
    H: int = 768
    F: int = 3072
    N: int = 12
    item: int = 2


# Of BERT-base with 256 pairs of 25 title tokens and 64 patches, in bfloat16: a step of an H100.
SHIPPED = Layer(T=22784, U=22784, S=256)


@dataclass(frozen=True)
class Kernel:
    """floor: bytes of the two least possible, read and written together; 0 of what need not be there."""

    name: str
    backward: bool
    read: int
    written: int
    floor: int


def _matmul(layer: Layer, name: str, m: int, k: int, n: int, *, backward: bool, adds: bool = False) -> Kernel:
    """(m, k) by (k, n); ``adds`` to what is there."""
    read, written = (m * k + k * n + adds * m * n) * layer.item, m * n * layer.item
    return Kernel(name, backward, read, written, read + written)


def _matmuls_backward(layer: Layer, name: str, k: int, n: int, *, adds: bool = False) -> list[Kernel]:
    """Of a forward matmul of (T, k) by (k, n): the gradients of its weight and of its input."""
    T = layer.T
    return [
        _matmul(layer, f"{name}: weight gradient", n, T, k, backward=True),
        _matmul(layer, f"{name}: input gradient", T, n, k, backward=True, adds=adds),
    ]


def _close(layer: Layer, name: str) -> tuple[Kernel, list[Kernel]]:
    """dropout_add_layer_norm after the matmul of that name, forward and backward."""
    from fashionbert_fast.kernels.triton.dropout_add_layer_norm import BACKWARD_ROWS, PROGRAMS

    T, H, e = layer.T, layer.H, layer.item
    rows_each = BACKWARD_ROWS * -(-T // (BACKWARD_ROWS * PROGRAMS))
    sums, stats = -(-T // rows_each) * 3 * H * FLOAT32, T * 2 * FLOAT32
    forward = Kernel(name, False, (2 * T + 3) * H * e + SEED, T * H * e + stats, 3 * T * H * e + 3 * H * e)
    return forward, [
        Kernel(name, True, (3 * T + 2) * H * e + stats + SEED, 2 * T * H * e + sums, 5 * T * H * e + 2 * H * e),
        Kernel(f"{name}: sums", True, sums, 3 * H * e, 3 * H * e),
    ]


def _gelu(layer: Layer) -> tuple[Kernel, list[Kernel]]:
    from fashionbert_fast.kernels.triton.bias_gelu import SUM_ROWS

    T, F, e = layer.T, layer.F, layer.item
    sums = -(-T // SUM_ROWS) * F * FLOAT32
    return Kernel("bias_gelu", False, (T + 1) * F * e, T * F * e, (2 * T + 1) * F * e), [
        Kernel("bias_gelu", True, (2 * T + 1) * F * e, T * F * e + sums, (3 * T + 1) * F * e),
        Kernel("bias_gelu: sums", True, sums, F * e, F * e),
    ]


def _attention(layer: Layer) -> tuple[Kernel, list[Kernel]]:
    """Of sequences that one block of keys holds."""
    T, U, S, H, N, e = layer.T, layer.U, layer.S, layer.H, layer.N, layer.item
    sums, starts = S * 3 * H * FLOAT32, (S + 1) * INDEX + SEED
    name = "packed_attention"
    forward = Kernel(name, False, (U + 1) * 3 * H * e + starts, T * H * e + N * T * FLOAT32, (4 * T + 3) * H * e)
    read = (U + 1) * 3 * H * e + U * H * e + N * U * FLOAT32 + starts
    return forward, [
        Kernel(name, True, read, T * 3 * H * e + sums, (7 * T + 3) * H * e),
        Kernel(f"{name}: sums", True, sums, 3 * H * e, 3 * H * e),
    ]


def kernels(layer: Layer) -> list[Kernel]:
    """All of them, in the order of their launches."""
    T, H, F = layer.T, layer.H, layer.F
    attention, attention_backward = _attention(layer)
    first, first_backward = _close(layer, "dropout_add_layer_norm 1")
    gelu, gelu_backward = _gelu(layer)
    second, second_backward = _close(layer, "dropout_add_layer_norm 2")
    forward = [
        _matmul(layer, "qkv", T, H, 3 * H, backward=False), attention,
        _matmul(layer, "attention output", T, H, H, backward=False), first,
        _matmul(layer, "feed-forward", T, H, F, backward=False), gelu,
        _matmul(layer, "feed-forward output", T, F, H, backward=False), second,
    ]  # fmt: skip
    return [
        *forward,
        *second_backward, *_matmuls_backward(layer, "feed-forward output", F, H),
        *gelu_backward, *_matmuls_backward(layer, "feed-forward", H, F, adds=True),
        *first_backward, *_matmuls_backward(layer, "attention output", H, H),
        *attention_backward, *_matmuls_backward(layer, "qkv", H, 3 * H, adds=True),
    ]  # fmt: skip


# Executed ------------------------------------------------------------------------------------------------------------
class _Executed(TorchDispatchMode):
    """While it is on, this project's operators are their GPU launchers. ``found``: (kernel or operator of torch, bytes
    read, bytes written) in order."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, int, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        import importlib

        from fashionbert_fast.profiling.work import call_of

        space, name = func._schema.name.split("::")
        if space == "fashionbert_fast":
            way = "backward" if name.endswith("_backward") else "forward"
            module = importlib.import_module(f"fashionbert_fast.kernels.triton.{name.removesuffix('_backward')}")
            with self, _touched(self.found):
                return getattr(module, f"launch_{way}")(*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        call = call_of(func, args, kwargs or {}, out)
        if call is not None:
            self.found.append((name, int(call.moved[0]), int(call.moved[1])))
        return out


@contextlib.contextmanager
def _touched(found: list[tuple[str, int, int]]) -> Iterator[None]:
    """Append what each kernel that Triton interprets meanwhile touches: distinct bytes read, and written."""
    import numpy as np
    from triton.runtime import interpreter

    builder, grid = interpreter.interpreter_builder, interpreter.GridExecutor
    addresses: dict[str, list] = {}
    load, store, call = builder.create_masked_load, builder.create_masked_store, grid.__call__

    def touch(kind: str, ptrs, mask) -> None:
        size = ptrs.get_element_ty().primitive_bitwidth // 8
        addresses.setdefault(f"{kind} {size}", []).append(np.unique(ptrs.data[mask.data]))

    def counted_load(ptrs, mask, *rest):
        touch("read", ptrs, mask)
        return load(ptrs, mask, *rest)

    def counted_store(ptrs, value, mask, *rest):
        touch("written", ptrs, mask)
        return store(ptrs, value, mask, *rest)

    def total(kind: str) -> int:
        return sum(
            len(np.unique(np.concatenate(parts))) * int(key.split()[1])
            for key, parts in addresses.items()
            if key.startswith(kind)
        )

    def counted_call(self, *args, **kwargs):
        addresses.clear()
        with _disable_current_modes():
            call(self, *args, **kwargs)
        found.append((self.fn.__name__, total("read"), total("written")))

    builder.create_masked_load, builder.create_masked_store, grid.__call__ = counted_load, counted_store, counted_call
    try:
        yield
    finally:
        builder.create_masked_load, builder.create_masked_store, grid.__call__ = load, store, call


def executed(layer: Layer) -> list[tuple[str, int, int]]:
    """(kernel, bytes read, bytes written) of a training step of one encoder layer, by the launchers, interpreted.

    Raises:
        RuntimeError: where TRITON_INTERPRET=1 was not set before triton was imported.
    """
    from triton.runtime.interpreter import InterpretedFunction

    from fashionbert_fast import FashionBertConfig
    from fashionbert_fast.kernels.triton import column_sums
    from fashionbert_fast.model.encoder import EncoderLayer, Packing

    if not isinstance(column_sums._sum_kernel, InterpretedFunction):
        raise RuntimeError("set TRITON_INTERPRET=1: kernels are run by Triton's interpreter")
    config = FashionBertConfig(
        hidden_size=layer.H, num_attention_heads=layer.N, intermediate_size=layer.F, num_hidden_layers=1
    )
    dtype = {2: torch.bfloat16, 4: torch.float32}[layer.item]
    module = EncoderLayer(config, site=0).to(dtype).train()
    cu_seqlens_S1 = torch.linspace(0, layer.U, layer.S + 1).round().int()
    longest = int(cu_seqlens_S1.diff().max())
    hidden_TH = torch.randn(layer.T, layer.H).to(dtype).requires_grad_()
    grad_TH = torch.randn(layer.T, layer.H).to(dtype)
    with _Executed() as run:
        out_TH = module(hidden_TH, Packing(cu_seqlens_S1, longest, torch.tensor([7])))
        torch.autograd.grad(out_TH, [hidden_TH, *module.parameters()], grad_TH)
    return run.found


# Report --------------------------------------------------------------------------------------------------------------
def rows(layer: Layer) -> list[Row]:
    """A row each for forward, backward and both: bytes beside the floor."""
    listed, found = kernels(layer), []
    for name, ways in (("forward", (False,)), ("backward", (True,)), ("forward and backward", (False, True))):
        chosen = [kernel for kernel in listed if kernel.backward in ways]
        moved = sum(kernel.read + kernel.written for kernel in chosen)
        floor = sum(kernel.floor for kernel in chosen)
        ratio, target = floor / moved, 1 / AIM
        case = f"encoder layer, T = {layer.T:,}, {name}: bytes moved"
        peer = "floor: separate matmuls, fused passes"
        row = Row(case, peer, moved / 1e6, floor / 1e6, "MB", ratio, target, ratio >= target, [ratio, ratio])
        found.append(row)
    return found


def _show(listed: list[Kernel]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("kernel", "", "read MB", "written MB", "of the floor")
    for kernel in listed:
        moved = kernel.read + kernel.written
        way = "backward" if kernel.backward else "forward"
        share = f"{moved / kernel.floor:.3f}" if moved / kernel.floor < 100 else "-"
        table.add_row(kernel.name, way, f"{kernel.read / 1e6:,.1f}", f"{kernel.written / 1e6:,.1f}", share)
    Console().print(table)


def main(argv: list[str] | None = None) -> int:
    from dataclasses import asdict

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models.layer_bytes", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="rows, and every kernel")
    parser.add_argument("--pairs", type=int, default=SHIPPED.S, help="of 89 tokens each (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        if args.pairs < 1:
            raise InputError(f"--pairs {args.pairs}: must be 1 or more")
        if args.json is not None:
            check_writable(args.json)
    except InputError as error:
        print(f"layer_bytes: error: {error}", file=sys.stderr)
        return 2
    layer = Layer(T=89 * args.pairs, U=89 * args.pairs, S=args.pairs)
    listed, found = kernels(layer), rows(layer)
    _show(listed)
    for row in found:
        print(f"{row.case}: {row.value:,.1f} MB, {1 / row.ratio:.3f} of the floor")
    if args.json is not None:
        result = {"device": "by count, on any", "versions": installed_versions(), "commit": commit(),
                  "rows": [asdict(row) for row in found], "kernels": [asdict(kernel) for kernel in listed]}  # fmt: skip
        write_json(args.json, result)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TRITON_INTERPRET", "1")
    sys.exit(main())
