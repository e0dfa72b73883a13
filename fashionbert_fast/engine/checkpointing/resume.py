"""The run directory as training finds it: new, or one that is continued, and written by one run at a time."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist
from omegaconf import OmegaConf

from fashionbert_fast.config import Config, load_config
from fashionbert_fast.distributed import is_main
from fashionbert_fast.engine.build import Run
from fashionbert_fast.engine.checkpointing.saver import load_checkpoint, load_train_state, newest_whole
from fashionbert_fast.engine.reporting.metrics import METRICS, read_metrics
from fashionbert_fast.engine.train_state import TrainState
from fashionbert_fast.errors import InputError
from fashionbert_fast.features.store import FeatureStore, require_same_features
from fashionbert_fast.files import read_json, sole_owner
from fashionbert_fast.run_directory import DAMAGED, MANIFEST, MODEL, best_step


def resumes(config: Config, asked: bool) -> bool:
    """Whether the run goes on from what its directory holds: as ``asked``, or where a launcher started the same command
    again, torchrun's --max-restarts or Slurm's --requeue, and there is something yet."""
    counts = (os.environ.get(name, "0") for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    return asked or (any(count not in ("", "0") for count in counts) and begun(Path(config.train.output)))


def begun(directory: Path) -> bool:
    """Whether a run wrote there, one without a checkpoint too."""
    return any((directory / name).exists() for name in (METRICS, "checkpoints", "config.yaml"))


def prepare_directory(config: Config, resume: bool) -> Path:
    """The run directory, checked before any work: new, or (``resume``) continued with the same configuration."""
    directory = Path(config.train.output)
    used = (directory / METRICS).exists() or (directory / "checkpoints").exists()
    if used and not resume:
        raise InputError(
            f"{directory}: already holds a run; continue it with --resume or set train.output to another directory"
        )
    if resume and not begun(directory):
        raise InputError(
            f"{directory}: holds no run to resume; set train.output to one that does, or begin it without --resume"
        )
    if config.train.wandb and importlib.util.find_spec("wandb") is None:
        raise InputError("train.wandb: Weights & Biases is not installed; pip install wandb, or leave it off")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"{directory}: cannot be written ({error.strerror}); set train.output elsewhere") from error
    return directory


def _check_same_run(saved: Path, began: Config, config: Config, then: int, now: int) -> None:
    """A resumed run must learn what it would have learned uninterrupted: name the first field that differs.

    then, now: how many processes. They may change, and the ZeRO stage, where the global batch stays.
    """
    free = {"train.output", "train.log_every", "train.checkpoint_every", "train.keep_checkpoints", "train.keep_hours",
            "data.workers", "data.store", "train.cuda_graphs", "train.nvtx", "train.zero_stage",
            "train.step_timeout", "train.max_skipped_steps", "train.wandb"}  # fmt: skip
    old, new = OmegaConf.structured(began), OmegaConf.structured(config)
    if new.train.steps > old.train.steps:
        free.add("train.steps")  # a longer run; its schedule is that of the new length from here on
    batch = ("train.micro_batch_size", "train.gradient_accumulation_steps")
    was, is_ = (math.prod(OmegaConf.select(run, name) for name in batch) for run in (old, new))
    if was * then == is_ * now:
        free.update(batch)
    elif then != now:
        raise InputError(
            f"train.micro_batch_size: a step takes {is_ * now} pairs on {now} processes, the run began on {then} with "
            f"{was * then}; resume on {now} with processes x train.micro_batch_size x "
            f"train.gradient_accumulation_steps = {was * then}, or start a new run with "
            f"model.core={saved.parent / MODEL} and another train.output"
        )
    for section in new:
        for key in new[section]:
            name = f"{section}.{key}"
            before, after = OmegaConf.select(old, name), OmegaConf.select(new, name)
            if section != "validation" and name not in free and before != after:
                raise InputError(
                    f"{name}: was {before}, now {after}; resume with the value the run began with ({saved})"
                )


def check_same_products(saved: dict, store: FeatureStore, began_with: str) -> None:
    """A store may move, but a resumed run goes on with the products it began with: by content where both hashes are
    known, else by their number in each split."""
    now = store.manifest.to_dict()
    names = ("content_sha256",) if saved.get("content_sha256") and now.get("content_sha256") else ("products", "splits")
    for name in names:
        if saved.get(name) != now[name]:
            raise InputError(
                f"{store.path}: not what this run began with, {began_with}: {name} {now[name]} against "
                f"{saved.get(name)}; set data.store to the store it began with, or train.output to another directory"
            )


def resume_run(run: Run) -> int:
    """Load the newest whole checkpoint, and what it says of the run into ``run.state``; returns its step, 0 where the
    run was interrupted before it had one.

    Raises:
        InputError: it had, and none is whole: beginning anew would lose what they hold.
    """
    checkpoint, complaints = newest_whole(run.directory)
    if is_main():
        for complaint in complaints:
            print(f"passed over {complaint}", flush=True)
    if checkpoint is None:
        aside = sorted((run.directory / "checkpoints").glob(f"{DAMAGED}*"))
        if aside:
            raise InputError(
                f"{run.directory}: none of its checkpoints is whole ({', '.join(path.name for path in aside)} are set "
                "aside); to begin anew, start without --resume and with another train.output"
            )
        if is_main():
            print("the run has no checkpoint yet: starting at step 0", flush=True)
        return 0
    if is_main():
        print(f"resuming from {checkpoint}", flush=True)
    then = json.loads((checkpoint / MANIFEST).read_text())["world_size"]
    began = load_config(checkpoint / "config.yaml")
    _check_same_run(checkpoint / "config.yaml", began, run.config, then, run.world_size)
    saved = read_json(checkpoint / MODEL / "patch_features.json")
    require_same_features(saved, run.store.manifest, f"{checkpoint} and {run.store.path}")
    check_same_products(saved, run.store, began.data.store)
    step = load_checkpoint(run.engine, checkpoint)
    found = [_train_state(run, checkpoint, step) if is_main() else None]  # the main process rewrites the log, once
    dist.broadcast_object_list(found)
    assert found[0] is not None
    run.state = found[0]
    return step


def _train_state(run: Run, checkpoint: Path, step: int) -> TrainState:
    """What the checkpoint says of the run, or of an older one the log. What RUN/checkpoints/best does not name is not
    the best so far: whatever is validated next is."""
    state = load_train_state(checkpoint) or _logged_state(run.directory, step)
    return state if state.best_step == best_step(run.directory) else replace(state, best_step=None, best=None, stale=0)


def _logged_state(directory: Path, last_step: int) -> TrainState:
    """Of a run whose checkpoints do not say yet: what its records say up to ``last_step``."""
    records = [record for record in read_metrics(directory) if record["step"] <= last_step]
    validations = {record["step"]: record["validation"] for record in records if "validation" in record}
    best = best_step(directory)
    known = (best, validations[best]) if best in validations else (None, None)
    stale = sum(step > best for step in validations) if best in validations else 0
    return TrainState(records[-1].get("skipped", 0) if records else 0, *known, stale)


@contextlib.contextmanager
def sole_writer(directory: Path) -> Iterator[None]:
    """Hold RUN/.lock on the first rank while in the block; InputError where another run has it."""
    if not is_main():
        yield
        return
    what, remedy = "another run is writing it", "wait for it, stop it, or set train.output to another directory"
    with sole_owner(directory / ".lock", f"{directory}: {what}", remedy):
        yield
