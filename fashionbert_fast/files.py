"""Files written whole or not at all, and read with a clear error."""

from __future__ import annotations

import json
import os
from pathlib import Path

from fashionbert_fast.errors import InputError


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
