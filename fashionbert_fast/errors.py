"""The errors a user is meant to see: what is wrong, where, and the remedy, in one line."""

from __future__ import annotations

import re

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
    """Training cannot go on: a loss, a gradient or a weight is no longer finite.

    The message is one line naming the step, the task and the samples, and the remedy. The command line prints it
    without a traceback and exits with status 1.
    """
