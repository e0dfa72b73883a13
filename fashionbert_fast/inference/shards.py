"""Long work on many rows, cut into parts: dealt to the ranks, and kept on disk until all of it is done.

How rows are cut depends on nothing but their number, and the parts are put together in their order, so the result is
bit for bit the same for any number of ranks, interrupted or not.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from fashionbert_fast.distributed import all_reduce_sum, is_main, world_size
from fashionbert_fast.errors import InputError
from fashionbert_fast.files import written_file
from fashionbert_fast.progress import progress


class Parts:
    """Where parts are kept.

    folder: of this work alone, made when it is needed; None: parts are not kept. identity: a hash of all that the
    numbers depend on but the rows; parts of another one are not used, they are deleted.
    """

    def __init__(self, folder: Path | None = None, identity: str = "") -> None:
        self.folder = None if folder is None else folder / identity[:32]
        if folder is not None and folder.is_dir() and is_main():
            for other in folder.iterdir():
                if other != self.folder:
                    shutil.rmtree(other, ignore_errors=True)

    def run(
        self, key: bytes, like: np.ndarray, count: int, size: int, work: Callable[[slice], np.ndarray], what: str
    ) -> np.ndarray:
        """``work`` on all ``count`` rows, at each call on ``size`` of them and by one of the ranks. A collective.

        key: of the rows; other rows are other work. like: an empty array of what comes of them, (0, ...). what: for the
        progress bar.
        """
        whole = np.zeros((count, *like.shape[1:]), dtype=like.dtype)
        folder = None if self.folder is None else self.folder / hashlib.sha256(key).hexdigest()[:32]
        parts = [slice(start, min(start + size, count)) for start in range(0, count, size)]
        kept_P = np.zeros(len(parts))
        if folder is not None and is_main():  # the others' disk may be another
            kept_P[:] = [_read(_file(folder, part), whole[part]) for part in parts]
        missing = np.flatnonzero(_sum(kept_P) == 0)
        mine = [parts[i] for i in missing[_rank() :: world_size()]]
        for part in progress(mine, total=len(mine), description=what):
            whole[part] = work(part)
            if folder is not None:
                _write(_file(folder, part), whole[part])
        return _sum(whole)


def forget(folder: Path | None) -> None:
    """All is done and written: delete what was kept there."""
    if folder is not None and is_main():
        shutil.rmtree(folder, ignore_errors=True)


def _rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def _sum(array: np.ndarray) -> np.ndarray:
    """Over all ranks, in place; of each number all but one are 0, so none is rounded."""
    all_reduce_sum(torch.from_numpy(array))
    return array


def _file(folder: Path, part: slice) -> Path:
    return folder / f"{part.start}.npy"


def _write(path: Path, values: np.ndarray) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be written ({error.strerror}); choose another --json") from error
    with written_file(path) as partial, partial.open("wb") as file:
        np.save(file, values, allow_pickle=False)


def _read(path: Path, into: np.ndarray) -> bool:
    """Whether the file holds a part like ``into``, which then has it."""
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    if values.shape != into.shape or values.dtype != into.dtype:
        return False
    into[...] = values
    return True
