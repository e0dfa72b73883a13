"""The errors a user is meant to see: what is wrong, where, and the remedy, in one line."""


class InputError(ValueError):
    """Bad input or usage: a file, field or row that cannot be used as given.

    The message is one line naming the file, field or row and the remedy. The command line prints it without a
    traceback and exits with status 2.
    """


class TrainingStopped(RuntimeError):
    """Training cannot go on: a loss, a gradient or a weight is no longer finite.

    The message is one line naming the step, the task and the samples, and the remedy. The command line prints it
    without a traceback and exits with status 1.
    """
