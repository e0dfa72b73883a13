"""Commands outside this checkout, as on a machine that has never seen it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def run_outside(*command: object, cwd: Path, status: int = 0, **environment: str) -> str:
    """What the command prints; AssertionError unless it exits with ``status``. Nothing of this environment reaches it
    but what pip and compilers are set up by."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FASHIONBERT"))}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=inherited | environment, capture_output=True, text=True
    )
    assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr
