"""What came of one trial of a proof, and how one is made."""

from __future__ import annotations

import re
import shutil
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Trial:
    """One of the n of a proof, and whether it is one of the k. ``note``: what was found: why it is not ``ok``, or a
    figure."""

    proof: str
    name: str
    ok: bool
    note: str = ""


def attempt(folder: Path, proof: str, name: str, work: Callable[[Path], object]) -> Trial:
    """Do ``work`` in a directory of its own below ``folder``: what raises, whatever it is, has failed; a text that it
    returns is the note.

    The directory of a failed trial is kept, with what was raised in `failure.txt`, and its note names it.
    """
    directory = folder / proof / re.sub(r"[^\w.=-]+", "-", name)
    directory.mkdir(parents=True)
    try:
        found = work(directory)
    except Exception as error:
        (directory / "failure.txt").write_text(traceback.format_exc())
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        return Trial(proof, name, False, f"{reason} (kept: {directory})")
    shutil.rmtree(directory)
    return Trial(proof, name, True, found if isinstance(found, str) else "")
