"""Weights in safetensors, and what they may cost. A model directory may come from a stranger: what its header and its
config.json say is checked against each other, and against the machine, before anything of those sizes is made."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from fashionbert_fast.errors import InputError
from fashionbert_fast.files import check_file, read_json
from fashionbert_fast.model.config import FashionBertConfig

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MOST_HEADER = 2**22  # bytes: some 30,000 tensors
DTYPES = ("F64", "F32", "F16", "BF16")
AGAIN = "fetch it again"
Shapes = Mapping[str, tuple[int, ...]]


def tensor_shapes(directory: Path) -> Shapes:
    """Of each tensor of numbers with a point, by the headers alone."""
    shapes = {}
    for path in _files(directory):
        check_file(path, AGAIN, sys.maxsize)
        try:
            with path.open("rb") as file:
                header = int.from_bytes(file.read(8), "little")
            if header > MOST_HEADER:
                raise SafetensorError(f"a header of {header:,} bytes is more than {MOST_HEADER:,}")
            with safe_open(path, "pt") as file:
                parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
                shapes |= {name: tuple(part.get_shape()) for name, part in parts.items() if part.get_dtype() in DTYPES}
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: cannot be read as safetensors ({error}); {AGAIN}") from error
    return shapes


def load_safetensors(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of model.safetensors, or of the shards that model.safetensors.index.json lists."""
    tensors: dict[str, torch.Tensor] = {}
    for path in _files(directory):
        try:
            tensors.update(load_file(path))
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: cannot be read as safetensors ({error}); {AGAIN}") from error
    return tensors


def _files(directory: Path) -> list[Path]:
    """The index names files beside it and no others. Links are followed: the hub's cache is made of them."""
    index = directory / INDEX
    if index.exists():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict):
            raise InputError(f"{index}: has no weight_map; {AGAIN}")
        for name in names.values():
            if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
                raise InputError(f"{index}: names {name!r:.100}, which is no .safetensors file beside it; {AGAIN}")
        return [directory / name for name in sorted(set(names.values()))]
    if (directory / WEIGHTS).exists():
        return [directory / WEIGHTS]
    if (directory / "pytorch_model.bin").exists():
        raise InputError(
            f"{directory}: holds only pytorch_model.bin, a pickle, which is never loaded; convert it to safetensors"
        )
    raise InputError(f"{directory}: no model.safetensors; give a checkpoint directory")


def check_sizes(config: FashionBertConfig, shapes: Shapes, expected: Shapes, directory: Path) -> None:
    """InputError unless the tensors ``expected``, which say all of a model's sizes, have their shapes in the file, and
    the machine has room for ``config``."""
    for name, shape in expected.items():
        if name not in shapes:
            raise InputError(f"{directory}: has no tensor {name}, which its config.json asks for; {AGAIN}")
        if shapes[name] != shape:
            raise InputError(f"{directory}: config.json asks for a {name} of {shape}, it has {shapes[name]}; {AGAIN}")
    check_fits(config, str(directory), "a model of fewer layers or narrower ones is needed")


def check_fits(config: FashionBertConfig, what: str, remedy: str) -> None:
    """InputError where the weights of ``config`` alone, in float32, are more than the machine has for its processes."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    needed, there = 4 * config.core_weights * processes, machine_memory()
    if needed > there:
        each = f" in each of {processes} processes" if processes > 1 else ""
        raise InputError(f"{what}: {config.core_weights:,} weights{each} take {needed / 1e9:,.1f} GB, this machine has "
                         f"{there / 1e9:,.1f} GB; {remedy}")  # fmt: skip


def machine_memory() -> int:
    """Bytes, of the machine or of the container that this is."""
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):
        path = Path("/sys/fs/cgroup", limit)
        if path.exists() and (text := path.read_text().strip()).isdigit():
            sizes.append(int(text))
    return min(sizes)
