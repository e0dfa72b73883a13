"""Training in the test's own process, where importing everything anew would take longer than the run."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# For a process of its own: of no process group yet, with the helpers of this directory within reach.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in LAUNCHED} | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
}


@contextlib.contextmanager
def own_traces() -> Iterator[None]:
    """Undo what a run leaves in its process: environment, handler of SIGTERM, the allocator's setting."""
    from fashionbert_fast.engine import build

    environment, keep = dict(os.environ), build.keep_freed_memory
    handler = signal.getsignal(signal.SIGTERM)
    build.keep_freed_memory = lambda: True  # it is for good, and this process has other tests to run
    try:
        yield
    finally:
        build.keep_freed_memory = keep
        signal.signal(signal.SIGTERM, handler)
        os.environ.clear()
        os.environ.update(environment)


def fashionbert(*words: str) -> subprocess.CompletedProcess:
    """`fashionbert WORDS` in this process: status, stdout and stderr as a process of its own would have them."""
    from fashionbert_fast.cli import main

    out, err = io.StringIO(), io.StringIO()
    with own_traces(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(list(words))
    return subprocess.CompletedProcess(["fashionbert", *words], status, out.getvalue(), err.getvalue())


def on_two_processes(*words: str) -> subprocess.CompletedProcess:
    """`fashionbert WORDS` under torchrun, which has to succeed."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    done = subprocess.run(
        [*launch, "fashionbert_fast", *words], env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done
