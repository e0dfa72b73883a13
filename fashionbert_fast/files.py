"""Files written whole or not at all, manifests that vouch for themselves, and clear errors where reading fails."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fashionbert_fast.errors import InputError

SEAL = "manifest_sha256"  # of a manifest: over all its other fields


def seal(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a manifest with the hash over them."""
    return dict(manifest) | {SEAL: _digest(manifest)}


def is_sealed(manifest: Mapping[str, Any]) -> bool:
    """Whether the fields are those that `seal` gave."""
    return manifest.get(SEAL) == _digest({name: part for name, part in manifest.items() if name != SEAL})


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_json(path: str | Path, value: object) -> None:
    """Write ``value`` as JSON through a temporary sibling; InputError naming the file where it cannot be written."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another file") from error


def check_writable(path: str | Path) -> None:
    """InputError now rather than after the work, where the file ``path`` could not be written."""
    parent = Path(path).parent
    if not parent.is_dir():
        raise InputError(f"{path}: no directory {parent}; create it or choose another file")
    if Path(path).is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"{path}: cannot be written; choose another file")


def read_json(path: Path) -> dict:
    """The JSON at ``path``; InputError naming the file where it cannot be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error
