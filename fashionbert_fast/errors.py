"""The errors a user is meant to see: what is wrong, where, and the remedy, in one line."""

from __future__ import annotations

import os
import re
from pathlib import Path

CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # a terminal obeys some of them


class InputError(ValueError):
    """Bad input or usage: a file, field or row that cannot be used as given.

    The message is one line naming the file, field or row and the remedy. The command line prints it without a
    traceback and exits with status 2.
    """

    def __init__(self, message: str) -> None:
        # torch raises what a loader's process raised as one of the same class, with that one's traceback before it.
        own = message.rpartition(f"{__name__}.{type(self).__name__}: ")[2]
        super().__init__(CONTROLS.sub(" ", own.strip()))


class TrainingStopped(RuntimeError):
    """Training cannot go on: losses, gradients or weights are no longer finite, or a process is gone.

    The message is one line naming the step, the task and the samples, and the remedy. The command line prints it
    without a traceback and exits with status 1.
    """


class PeerLost(TrainingStopped):
    """Training cannot go on: another of its processes is gone."""


def is_first_to_tell() -> bool:
    """Whether this process prints the error: one line a machine, not one a process.

    Under torchrun the first process to fail tells, since torchrun ends the others within a tenth of a second: rank 0
    may not have come as far. It gives each process a file for errors, all below a folder of this attempt on this
    machine. Other launchers wait longer, and rank 0 tells.
    """
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if error_file and "LOCAL_RANK" in os.environ:
        try:
            (Path(error_file).parent.parent / "told").touch(exist_ok=False)
        except FileExistsError:
            return False
        except OSError:  # no such folder: the variable was inherited from another job
            pass
        else:
            return True
    return os.environ.get("LOCAL_RANK", "0") == "0"
