"""What stands where a file is expected and is none: reading it would never end, or read nothing."""

from __future__ import annotations

import os
from pathlib import Path

KINDS = ("pipe", "folder", "device")


def make(path: Path, kind: str) -> None:
    """Put one of `KINDS` at ``path``, where nothing is."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
