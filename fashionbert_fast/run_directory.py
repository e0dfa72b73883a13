"""What stands in a run directory, for whoever reads it: which checkpoints are whole, which is the newest, the best.

    RUN/checkpoints/best -> step-00001000      where validation.keep_best is set
    RUN/checkpoints/step-00001000/
        manifest.json     every file with size and SHA-256, written last
        state/            DeepSpeed's shards: optimizer, schedule, loss scale
        model/            config.json, model.safetensors (fp32 master weights), tokenizer, patch_features.json

`engine/checkpoint.py` writes it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from fashionbert_fast.errors import InputError

MANIFEST = "manifest.json"
STATE, MODEL = "state", "model"
BEST = "best"  # a link beside the checkpoints


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


def list_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints, oldest first, their files not yet verified."""
    return sorted(path.parent for path in (run / "checkpoints").glob(f"step-*/{MANIFEST}"))


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text())["files"]
        for name, expected in files.items():
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"] or sha256(path) != expected["sha256"]:
                return f"{name} is damaged"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return None


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
