"""Checkpoints: complete or not there; run_directory.py has the layout and reads it.

All ranks write into a temporary sibling, rank 0 adds the manifest and renames the directory: a killed run leaves a
whole checkpoint or none. A checkpoint may come from a stranger: DeepSpeed's shards are pickles, of which nothing is
built but tensors, plain containers and a few classes by name (`engine.unpickling`).
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import torch
from torch._utils import _unflatten_dense_tensors

from fashionbert_fast.data.tokenizer import copy_tokenizer
from fashionbert_fast.distributed import barrier, first_of_all_ranks, is_main, world_size
from fashionbert_fast.engine.divergence import require_finite
from fashionbert_fast.errors import InputError
from fashionbert_fast.files import seal
from fashionbert_fast.run_directory import (
    BEST,
    DAMAGED,
    MANIFEST,
    MODEL,
    STATE,
    best_step,
    checkpoint_name,
    damage,
    list_checkpoints,
    sha256,
)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def master_weights(engine) -> dict[str, torch.Tensor]:
    """fp32 weights by name, gathered from whatever ZeRO stage and precision; a collective: call it on every rank."""
    from deepspeed.utils import safe_get_full_fp32_param

    weights, whole = {}, _whole_masters(engine.optimizer)
    for name, parameter in engine.module.named_parameters():
        full = safe_get_full_fp32_param(parameter)
        if full is None:
            full = whole.get(parameter, parameter)
        assert full is not None
        weights[name] = full.detach().float().cpu().clone()
    return weights


def _whole_masters(optimizer) -> dict[torch.Tensor, torch.Tensor]:
    """The fp32 weight behind each 16-bit parameter at ZeRO 0, of which `safe_get_full_fp32_param` does not know."""
    from fashionbert_fast.engine.flat import FlatOptimizer

    if isinstance(optimizer, FlatOptimizer):
        return optimizer.masters
    if hasattr(optimizer, "fp32_groups_flat"):  # of the fused Adams, DeepSpeed's and apex's
        groups = map(_unflatten_dense_tensors, optimizer.fp32_groups_flat, optimizer.fp16_groups)
    elif hasattr(optimizer, "fp32_groups"):
        groups = optimizer.fp32_groups
    else:
        return {}
    pairs = zip(optimizer.fp16_groups, groups, strict=True)
    return {low: full for lows, fulls in pairs for low, full in zip(lows, fulls, strict=True)}


def save_checkpoint(engine, run: Path, step: int, tokenizer: Path, config_yaml: str, keep: int) -> Path | None:
    """Write checkpoint ``step`` and drop all but the newest ``keep`` and the best; every rank calls it.

    Returns:
        Its directory; None where the disk has no room for it, which is told in a line: then nothing was dropped, and
        nothing is left behind.

    Raises:
        TrainingStopped: a weight is not finite; nothing was written or dropped.
    """
    weights = master_weights(engine)
    require_finite(weights, step)
    final = run / "checkpoints" / checkpoint_name(step)
    partial = final.with_name(f".{final.name}.partial")
    needed = space_needed(run, weights)
    lack = first_of_all_ranks(_lack_of_space(run, needed) if is_main() else None)
    if lack is not None:
        return _not_written(step, lack)
    try:
        _write(engine, partial, final, step, weights, tokenizer, config_yaml)
    except (OSError, RuntimeError):  # torch's writer says of a full disk what it says of any
        lack = _lack_of_space(run, needed)
        if lack is None or world_size() > 1:  # other ranks may wait for this one
            raise
        shutil.rmtree(partial, ignore_errors=True)
        return _not_written(step, lack)
    if is_main():
        _drop_old(run, keep)
    barrier()
    return final


def space_needed(run: Path, weights: dict[str, torch.Tensor]) -> int:
    """Bytes: what the newest checkpoint takes, and where there is none float32 weights and Adam's state thrice."""
    listed = list_checkpoints(run)
    if listed:
        return sum(path.stat().st_size for path in listed[-1].rglob("*") if path.is_file())
    return 5 * 4 * sum(weight.numel() for weight in weights.values())


def _lack_of_space(run: Path, needed: int) -> str | None:
    free = shutil.disk_usage(run).free
    return f"{run} has {free / 1e9:.2f} GB free and needs {needed / 1e9:.2f}" if free < needed else None


def _not_written(step: int, lack: str) -> None:
    if is_main():
        print(f"the checkpoint of step {step} is not written: {lack}; training goes on to the next", flush=True)


def _write(
    engine, partial: Path, final: Path, step: int, weights: dict[str, torch.Tensor], tokenizer: Path, config_yaml: str
) -> None:
    if is_main():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    barrier()
    engine.save_checkpoint(str(partial), tag=STATE, client_state={"step": step}, save_latest=False)
    if is_main():
        engine.module.save_pretrained(partial / MODEL, state_dict=weights)
        copy_tokenizer(tokenizer, partial / MODEL)
        (partial / "config.yaml").write_text(config_yaml)
    barrier()
    if is_main():
        _seal(partial, step)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        _fsync(final.parent)


def _drop_old(run: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints and the best one."""
    best = best_step(run)
    for old in list_checkpoints(run)[:-keep]:
        if best is None or old.name != checkpoint_name(best):
            shutil.rmtree(old)


def mark_best(run: Path, checkpoint: Path, keep: int) -> None:
    """Let RUN/checkpoints/best name ``checkpoint``, at once or not at all; what it named goes the way of the old ones.
    Every rank calls it."""
    if is_main():
        link = run / "checkpoints" / BEST
        partial = link.with_name(f".{BEST}.partial")
        partial.unlink(missing_ok=True)
        partial.symlink_to(checkpoint.name)  # relative: a run directory may be moved
        if link.is_dir() and not link.is_symlink():
            shutil.rmtree(link)  # a copy of the run that followed the link made a directory of it
        os.replace(partial, link)
        _fsync(link.parent)
        _drop_old(run, keep)
    barrier()


def _seal(directory: Path, step: int) -> None:
    """Write the manifest over every file, all flushed to disk."""
    files = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        _fsync(path)
        files[str(path.relative_to(directory))] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    manifest = {"step": step, "world_size": int(os.environ.get("WORLD_SIZE", "1")), "files": files}
    (directory / MANIFEST).write_text(json.dumps(seal(manifest), indent=2) + "\n")
    _fsync(directory / MANIFEST)


def newest_whole(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole to every rank, and what was wrong with newer ones, which are set aside: under
    another name they are no longer counted by retention, and nothing is lost. Every rank calls it."""
    complaints = []
    for checkpoint in reversed(list_checkpoints(run)):
        wrong = first_of_all_ranks(damage(checkpoint))
        if wrong is None:
            return checkpoint, complaints
        if is_main():
            aside = _set_aside(checkpoint)
            complaints.append(f"{checkpoint}: {wrong}; it is {aside.name} now")
        barrier()
    return None, complaints


def _set_aside(checkpoint: Path) -> Path:
    aside, number = checkpoint.with_name(DAMAGED + checkpoint.name), 1
    while aside.exists():
        number += 1
        aside = checkpoint.with_name(f"{DAMAGED}{checkpoint.name}.{number}")
    os.replace(checkpoint, aside)
    return aside


def load_checkpoint(engine, checkpoint: Path) -> int:
    """Restore engine, optimizer and schedule from a verified checkpoint; returns its step."""
    from fashionbert_fast.engine.unpickling import reading_safely

    manifest = json.loads((checkpoint / MANIFEST).read_text())
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if manifest["world_size"] != processes:
        raise InputError(
            f"{checkpoint}: written by {manifest['world_size']} processes, this run has {processes}; "
            f"resume with as many, or start a new run with model.core={checkpoint / MODEL} and another train.output"
        )
    try:
        with reading_safely(engine):
            path, _ = engine.load_checkpoint(str(checkpoint), tag=STATE)
    except (pickle.UnpicklingError, OSError, EOFError, RuntimeError, LookupError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{checkpoint}: its state cannot be loaded ({reason}); resume from an earlier one by moving it away"
        ) from error
    if path is None:
        raise InputError(f"{checkpoint}: DeepSpeed could not load it; resume from an earlier one by moving it away")
    return manifest["step"]
