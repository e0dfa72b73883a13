"""What training holds, in pieces that depend on neither the number of ranks nor the ZeRO stage: tensors and JSON alone.

A piece is a stretch of one parameter, laid flat: its float32 master and what the optimizer keeps of each element. Every
rank writes those that it steps with, so that a save needs no collective, and reads those that it will step with,
whichever ranks wrote them. Nothing is left out that a step depends on: batches, masks and dropout are functions of the
seed, the step and the rank, the learning rate one of the steps done. Imports DeepSpeed, which wants to be told of the
accelerator before: so it is imported where it is used.

    state/rank-00000.safetensors    MASTER/NAME, exp_avg/NAME, ...: (n,) of each piece; where it starts, in the metadata
    state/training.json             steps done of the schedule, those that optimizers count, loss scale, what the
                                    weighting remembers
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from safetensors import safe_open
from safetensors.torch import save_file
from torch._utils import _unflatten_dense_tensors

from fashionbert_fast.engine.zero.flat import FlatOptimizer, gather_weights
from fashionbert_fast.errors import InputError
from fashionbert_fast.files import share
from fashionbert_fast.run_directory import TRAINING

MASTER = "master"
PIECES = "pieces"  # of a file's metadata
NUMBER, HOST, DEVICE = "number", "host", "device"  # what a number of the optimizer's was: Python's, a tensor's here


class Piece(NamedTuple):
    """Elements ``start`` to ``stop`` of a parameter: those from ``offset`` on of ``stepped``, which is stepped."""

    name: str
    start: int
    stop: int
    stepped: torch.Tensor
    offset: int

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """(stop - start,) view of ``tensor``, which lies like ``stepped``."""
        return tensor.view(-1).narrow(0, self.offset, self.stop - self.start)


def held(engine) -> list[Piece]:
    """The pieces that this rank steps with: at ZeRO 0 every parameter whole, on every rank."""
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    optimizer = engine.optimizer
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        return list(_of_stage_3(optimizer, names))
    if isinstance(optimizer, DeepSpeedZeroOptimizer):
        return list(_of_stages_1_and_2(optimizer, names))
    return [
        Piece(names[parameter], 0, parameter.numel(), stepped, offset)
        for parameter, stepped, offset in _whole(optimizer)
    ]


def _of_stage_3(optimizer, names: dict[Any, str]) -> Iterator[Piece]:
    rank = dist.get_rank(optimizer.dp_process_group)
    for parameter, name in names.items():
        group, offset, padded = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start, stop = rank * padded, min((rank + 1) * padded, parameter.ds_numel)
        if start < stop:
            yield Piece(name, start, stop, optimizer.fp32_partitioned_groups_flat[group], offset)


def _of_stages_1_and_2(optimizer, names: dict[Any, str]) -> Iterator[Piece]:
    for stepped, parameters in zip(optimizer.single_partition_of_fp32_groups, optimizer.bit16_groups, strict=True):
        for parameter in parameters:
            if parameter._hp_mapping is not None:  # else all of it is another rank's
                here, there = parameter._hp_mapping.lp_fragment_address, parameter._hp_mapping.hp_fragment_address
                yield Piece(names[parameter], here.start, here.start + here.numel, stepped, there.start)


def _whole(optimizer) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
    """Of an optimizer without ZeRO: each parameter, what is stepped for it, and where in that it lies."""
    if isinstance(optimizer, FlatOptimizer):
        for parameter, (stepped, offset) in optimizer.stepped.items():
            yield parameter, stepped, offset
    elif hasattr(optimizer, "fp32_groups_flat"):  # DeepSpeed's for float16, around its and apex's fused optimizers
        for parameters, flat in zip(optimizer.fp16_groups, optimizer.fp32_groups_flat, strict=True):
            for parameter, master in zip(parameters, _unflatten_dense_tensors(flat, parameters), strict=True):
                yield parameter, flat, master.storage_offset()
    else:  # and around any other
        for parameters, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            yield from ((parameter, master, 0) for parameter, master in zip(parameters, masters, strict=True))


def _own_share(piece: Piece) -> Piece:
    """Of what all ranks hold alike, the part that this one writes."""
    rank, ranks, size = dist.get_rank(), dist.get_world_size(), piece.stop - piece.start
    first, last = rank * size // ranks, (rank + 1) * size // ranks
    return piece._replace(start=piece.start + first, stop=piece.start + last, offset=piece.offset + first)


@dataclass
class Snapshot:
    """A rank's state at one moment, in host memory. ``training`` is the same on all ranks."""

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]
    training: dict[str, Any]

    def masters(self) -> dict[str, torch.Tensor]:
        """The float32 weights among them, by parameter."""
        return {name.partition("/")[2]: part for name, part in self.tensors.items() if name.startswith(f"{MASTER}/")}

    def write(self, directory: Path) -> Path:
        """The rank's file in ``directory``, not yet flushed to disk."""
        path = directory / f"rank-{dist.get_rank():05d}.safetensors"
        save_file(self.tensors, path, metadata=self.metadata)
        share(path)
        return path


@torch.no_grad()
def take_snapshot(engine, memory: dict[str, torch.Tensor]) -> Snapshot:
    """Copy what this rank holds to host memory; training may go on at once.

    memory: of the last snapshot, which nobody reads any more; it is taken again. New memory costs five times the copy.
    """
    pieces = held(engine)
    if engine.zero_optimization_stage() == 0:
        pieces = [share for share in map(_own_share, pieces) if share.start < share.stop]
    state = engine.optimizer.optimizer.state
    tensors, numbers = {}, {}
    of_stepped: dict[int, dict] = {}  # a flat tensor has many pieces, and reading a number may wait for a GPU
    for piece in pieces:
        kept = state.get(piece.stepped, {})
        tensors[f"{MASTER}/{piece.name}"] = _to_host(piece.of(piece.stepped), memory.get(f"{MASTER}/{piece.name}"))
        for key, value in kept.items():
            if _is_elementwise(value, piece.stepped):
                tensors[f"{key}/{piece.name}"] = _to_host(piece.of(value), memory.get(f"{key}/{piece.name}"))
        if id(piece.stepped) not in of_stepped:
            of_stepped[id(piece.stepped)] = dict(_numbers(kept, piece.stepped))
        numbers[piece.name] = of_stepped[id(piece.stepped)]
    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()
    starts = {piece.name: piece.start for piece in pieces}
    # One entry: safetensors writes several in any order, and equal states would be files of different hashes.
    metadata = {PIECES: json.dumps({"starts": starts, "numbers": numbers})}
    return Snapshot(tensors, metadata, _training(engine))


def _is_elementwise(value: Any, stepped: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == stepped.shape and value.dim() > 0


def _to_host(tensor: torch.Tensor, host: torch.Tensor | None) -> torch.Tensor:
    if host is None:
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return host.copy_(tensor, non_blocking=True)


def _numbers(kept: dict[str, Any], stepped: torch.Tensor) -> Iterator[tuple[str, tuple[str, float]]]:
    """Those that an optimizer keeps of a whole tensor, such as Adam's step, and where each is."""
    for key, value in kept.items():
        if isinstance(value, torch.Tensor) and value.numel() == 1 and not _is_elementwise(value, stepped):
            yield key, (DEVICE if value.device == stepped.device != torch.device("cpu") else HOST, value.item())
        elif isinstance(value, (int, float)):
            yield key, (NUMBER, value)


def _training(engine) -> dict[str, Any]:
    groups = engine.optimizer.optimizer.param_groups
    return {
        "schedule": engine.lr_scheduler.last_epoch,
        "groups": [{"step": int(group["step"])} if "step" in group else {} for group in groups],
        "loss_scale": _loss_scale(engine.optimizer)[1],
        "weighting": engine.module.weighter.saved_memory(),
    }


def _loss_scale(optimizer) -> tuple[Any, dict[str, float]]:
    """DeepSpeed's loss scale and its numbers, none where it keeps none; of other precisions than float16 they stay."""
    scaler = getattr(optimizer, "loss_scaler", None) or getattr(optimizer, "loss_scale_config", None)
    fields = {} if scaler is None else vars(scaler)
    return scaler, {key: value for key, value in fields.items() if isinstance(value, (int, float))}


def shapes_of(module: torch.nn.Module) -> dict[str, torch.Size]:
    """Of all parameters, those that ZeRO-3 has in parts included."""
    return {name: getattr(parameter, "ds_shape", parameter.shape) for name, parameter in module.named_parameters()}


# Reading --------------------------------------------------------------------------------------------------------------
class Pieces:
    """The pieces in a checkpoint's state directory, of whichever ranks; a context manager."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.stack = directory, ExitStack()
        self.found: dict[str, list[tuple[int, Any]]] = {}  # parameter -> start of a piece and its file
        self.numbers: dict[str, dict[str, tuple[str, float]]] = {}
        self.keys: set[str] = set()  # MASTER and the optimizer's
        for path in sorted(directory.glob("rank-*.safetensors")):
            file = self.stack.enter_context(safe_open(path, "pt"))
            pieces = json.loads(file.metadata()[PIECES])
            for name, start in pieces["starts"].items():
                self.found.setdefault(name, []).append((int(start), file))
            self.numbers |= pieces["numbers"]
            self.keys |= {key.partition("/")[0] for key in file.keys()}  # noqa: SIM118 (it is no dict)

    def __enter__(self) -> Pieces:
        return self

    def __exit__(self, *_) -> None:
        self.stack.close()

    def fill(self, key: str, name: str, start: int, target: torch.Tensor) -> None:
        """A parameter's ``key``, from element ``start`` on, into ``target``, (n,). InputError where one is missing."""
        stop, filled = start + len(target), 0
        for begins, file in self.found.get(name, []):
            part = file.get_slice(f"{key}/{name}")
            first, last = max(start, begins), min(stop, begins + part.get_shape()[0])
            if first < last:
                target[first - start : last - start].copy_(part[first - begins : last - begins])
                filled += last - first
        if filled != len(target):
            raise InputError(
                f"{self.directory}: has {filled} of elements {start} to {stop} of {name}'s {key}; resume from an "
                "earlier checkpoint by moving this one away"
            )


def whole_weights(directory: Path, shapes: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
    """Float32 weights of these names and shapes, of the pieces in ``directory``."""
    weights = {name: torch.empty(shape.numel()) for name, shape in shapes.items()}
    with Pieces(directory) as pieces:
        for name, weight in weights.items():
            pieces.fill(MASTER, name, 0, weight)
    return {name: weight.view(shapes[name]) for name, weight in weights.items()}


@torch.no_grad()
def restore(engine, directory: Path) -> None:
    """Give ``engine``, of any number of ranks and any ZeRO stage, the state in ``directory``; every rank calls it.

    Raises:
        InputError: a piece is missing. What safetensors, JSON and torch raise where files are not what they should be.
    """
    training = json.loads((directory / TRAINING).read_text())
    optimizer = engine.optimizer.optimizer
    with Pieces(directory) as pieces:
        keys = sorted(pieces.keys - {MASTER})
        for piece in held(engine):
            pieces.fill(MASTER, piece.name, piece.start, piece.of(piece.stepped))
            kept = optimizer.state[piece.stepped]
            for key in keys:
                if not _is_elementwise(kept.get(key), piece.stepped):
                    kept[key] = torch.zeros_like(piece.stepped)
                pieces.fill(key, piece.name, piece.start, piece.of(kept[key]))
            numbers = {key: _placed(*value, piece.stepped) for key, value in pieces.numbers[piece.name].items()}
            for key in kept.keys() - {*keys, *numbers}:
                del kept[key]  # of a step that this checkpoint knows nothing of
            kept.update(numbers)
    for group, saved in zip(optimizer.param_groups, training["groups"], strict=True):
        group.update({"step": int(saved["step"])} if "step" in saved else {})
    scaler, fields = _loss_scale(engine.optimizer)
    for key in fields.keys() & training["loss_scale"].keys():
        setattr(scaler, key, training["loss_scale"][key])
    engine.module.weighter.restore_memory(training.get("weighting", {}))
    _set_schedule(engine.lr_scheduler, int(training["schedule"]))
    _cast_weights(engine)


def _placed(where: str, value: float, stepped: torch.Tensor) -> float | torch.Tensor:
    if where == NUMBER:
        return value
    return torch.tensor(float(value), device=stepped.device if where == DEVICE else "cpu")


def _set_schedule(schedule, done: int) -> None:
    schedule.last_epoch = done
    schedule._last_lr = [base * rate(done) for base, rate in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    for group, lr in zip(schedule.optimizer.param_groups, schedule._last_lr, strict=True):
        group["lr"] = lr


def _cast_weights(engine) -> None:
    """The model's weights, of whatever precision, from their float32 masters."""
    optimizer = engine.optimizer
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        for group in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if optimizer.persistent_parameters:  # which every rank has whole
            optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters)
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
    elif isinstance(optimizer, DeepSpeedZeroOptimizer):
        gather_weights(optimizer)
    else:
        for parameter, stepped, offset in _whole(optimizer):
            parameter.data.copy_(stepped.view(-1).narrow(0, offset, parameter.numel()).view(parameter.shape))
