"""Signals end a run in order: all ranks save the same step and stop."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from types import FrameType

# Ctrl-C; what launchers and Slurm send before they kill; what Slurm's --signal=USR1 sends ahead of a time limit.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
PATIENCE = 2.0  # seconds
PR_SET_PDEATHSIG = 1  # of Linux's prctl(2)


class Interrupted(KeyboardInterrupt):
    """A signal ended training after ``step``, which is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(f"step {step} is saved")


class StopRequest:
    """While it is entered, any of `SIGNALS` asks for a stop, and a Ctrl-C that comes later interrupts at once.

    Later: after `PATIENCE`. A Ctrl-C reaches a rank from the terminal and from torchrun, and the kernel tells of a
    launcher's death once for each of its threads.

    Whether one has asked any rank the loop agrees on after every step (`distributed.HostSums`), so that a signal to one
    process stops all of them after the same step.
    """

    def __init__(self) -> None:
        self.asked, self.since = False, 0.0

    def __enter__(self) -> StopRequest:
        main = threading.current_thread() is threading.main_thread()  # no other may set a handler
        self.before = {number: signal.signal(number, self._ask) for number in SIGNALS} if main else {}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.asked:
            self.asked, self.since = True, now
        elif number == signal.SIGINT and now - self.since > PATIENCE:
            raise KeyboardInterrupt


def end_with_launcher() -> None:
    """Have the kernel send this process SIGTERM when its launcher dies: whoever kills torchrun alone, by SIGKILL even,
    would leave its ranks training. Under no launcher a run may outlive the shell that began it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    launcher = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != launcher:  # it was quicker
        os.kill(os.getpid(), signal.SIGTERM)


def ignore_signals(_worker: int) -> None:
    """In a loader's process: a terminal and Slurm signal it as well, and the run takes batches until it stops."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
