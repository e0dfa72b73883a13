"""What stands in a run directory, for whoever reads it: which checkpoints are whole, which is the newest, the best.

    RUN/checkpoints/best -> step-00001000      where validation.keep_best is set
    RUN/checkpoints/damaged-step-00000900/     was not whole when a run was resumed: set aside, not counted, not deleted
    RUN/checkpoints/step-00001000/
        manifest.json     every file with size and SHA-256, and the hash of itself, written last
        state/            each rank's part of masters and optimizer, schedule, loss scale: engine/zero/state.py
        model/            config.json, model.safetensors (fp32 master weights), tokenizer, patch_features.json

`engine/checkpointing/saver.py` writes it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from fashionbert_fast.errors import InputError
from fashionbert_fast.files import SEAL, is_sealed

MANIFEST = "manifest.json"
STATE, MODEL = "state", "model"
TRAINING = "training.json"  # in STATE, beside the ranks' tensors
BEST = "best"  # a link beside the checkpoints
PREFIX, DAMAGED = "step-", "damaged-"  # of a checkpoint's name; of what was set aside
# What no checkpoint goes without: a manifest of nothing would vouch for anything.
REQUIRED = (
    "config.yaml", f"{MODEL}/config.json", f"{MODEL}/model.safetensors", f"{MODEL}/patch_features.json",
    f"{STATE}/{TRAINING}",
)  # fmt: skip


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def best_step(run: Path) -> int | None:
    """The step of the checkpoint that RUN/checkpoints/best names; None where there is none."""
    try:
        return json.loads((run / "checkpoints" / BEST / MANIFEST).read_text())["step"]
    except (OSError, ValueError, KeyError):
        return None


def written(checkpoint: Path) -> float:
    """When it was written, in seconds since 1970; 0 where its manifest does not say."""
    try:
        return float(json.loads((checkpoint / MANIFEST).read_text())["written"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def list_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints, oldest first, their files not yet verified."""
    return sorted(path.parent for path in (run / "checkpoints").glob(f"{PREFIX}*/{MANIFEST}"))


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None: they are those of its manifest, all and no others, and the
    manifest is the one that was sealed, of the step that the directory is named for."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        if not isinstance(manifest, dict):
            return f"{MANIFEST} cannot be read (it is no object)"
        if SEAL not in manifest:
            return f"{MANIFEST} has no {SEAL}: it was edited, or written by an older fashionbert_fast"
        if not is_sealed(manifest):
            return f"{MANIFEST} was edited or is damaged: its {SEAL} does not belong to its fields"
        if checkpoint.name.startswith(PREFIX) and checkpoint.name != checkpoint_name(manifest["step"]):
            return f"{MANIFEST} is of step {manifest['step']}"
        return _damaged_file(checkpoint, manifest["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__}: {error})"


def _damaged_file(checkpoint: Path, files: dict[str, dict]) -> str | None:
    there = {str(path.relative_to(checkpoint)): path for path in checkpoint.rglob("*") if not path.is_dir()}
    for name in (*REQUIRED, *files):
        if name not in there:
            return f"{name} is missing"
    for name in sorted(there.keys() - {MANIFEST}):
        path = there[name]
        if name not in files:
            return f"{name} is not of this checkpoint"
        if path.is_symlink() or not path.is_file():
            return f"{name} is a link or no file"
        if path.stat().st_size != files[name]["bytes"] or sha256(path) != files[name]["sha256"]:
            return f"{name} is damaged"
    return None


def checkpoint_name(step: int) -> str:
    return f"{PREFIX}{step:08d}"


def newest_valid(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files are what its manifest says, and what was wrong with newer ones."""
    complaints = []
    for checkpoint in reversed(list_checkpoints(run)):
        wrong = damage(checkpoint)
        if wrong is None:
            return checkpoint, complaints
        complaints.append(f"{checkpoint}: {wrong}")
    return None, complaints


def resolve_model_dir(path: Path) -> Path:
    """The model directory of a run, of one of its checkpoints, or ``path`` itself where it is a model directory.

    Raises:
        InputError: nothing complete is there (a run interrupted before its first checkpoint, say).
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such directory; give a run directory or one that save_pretrained wrote")
    if (path / "config.json").exists():
        return path
    if (path / MANIFEST).exists() and (path / MODEL).is_dir():
        wrong = damage(path)
        if wrong:
            raise InputError(f"{path}: {wrong}; give another checkpoint")
        return path / MODEL
    if (path / "checkpoints").is_dir() or (path / "config.yaml").exists():
        checkpoint, complaints = newest_valid(path)
        if checkpoint is None:
            why = complaints[0] if complaints else "was interrupted before its first checkpoint"
            raise InputError(
                f"{path}: no complete checkpoint ({why}); continue it with `fashionbert pretrain --resume`"
            )
        return checkpoint / MODEL
    raise InputError(f"{path}: neither a run directory nor a model directory; give one that pretrain wrote")
