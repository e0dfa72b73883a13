"""Files and folders written whole or not at all and by one process at a time, manifests that vouch for themselves, and
clear errors where reading fails: what is read may come from a stranger."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from fashionbert_fast.errors import InputError

SEAL = "manifest_sha256"  # of a manifest: over all its other fields
MOST_BYTES = 2**24  # of a file of JSON or text that is read at once
MOST_PARTS = 500_000  # arrays and objects in it, each of which takes 2 bytes there and 60 in memory


def seal(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a manifest with the hash over them."""
    return dict(manifest) | {SEAL: _digest(manifest)}


def is_sealed(manifest: Mapping[str, Any]) -> bool:
    """Whether the fields are those that `seal` gave."""
    return manifest.get(SEAL) == _digest({name: part for name, part in manifest.items() if name != SEAL})


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_json(path: str | Path, value: object) -> None:
    """Write ``value`` as JSON; see `write_text`."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to the file ``path``, whole or not at all; InputError naming it where it cannot be written."""
    with written_file(path) as partial:
        partial.write_text(text)


@contextlib.contextmanager
def written_file(path: str | Path) -> Iterator[Path]:
    """A sibling to write to, which is the file ``path`` when the block ends, and gone where that raises. InputError
    naming the file where it cannot be written."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        fsync(partial)
        os.replace(partial, path)
        fsync(path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another file") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Have the disk hold what was written to the file, or which files the folder has."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def share(file: Path) -> None:
    """Let others read a file, in a folder that this process made, as the mask says: some libraries write for their
    owner alone."""
    file.chmod(file.parent.stat().st_mode & 0o666)


def fsync_all(folder: Path) -> None:
    """`fsync` of a folder and of all that is in it."""
    for path in (*folder.rglob("*"), folder):
        fsync(path)


@contextlib.contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A new folder to write to; when the block ends its files are those of ``target``, on the disk. All at once where
    that is new or empty, else file by file, each of them whole. Nothing is left of a block that raises."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                share(file)
        fsync_all(partial)
        try:
            os.rename(partial, target)
        except OSError:  # it has files
            for file in sorted(partial.iterdir()):
                os.replace(file, target / file.name)
            fsync(target)
        fsync(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def sole_owner(path: Path, what: str, remedy: str) -> Iterator[None]:
    """Hold the lock of the file ``path`` while in the block. The kernel's lock ends with its process, however that
    does, and processes that it forks do not have it. A file system without locks grants it to all.

    Raises:
        InputError: "``what`` (the owner); ``remedy``": another process has it, on this machine or on another that
            shares the file system.
    """
    lock = _locked(path, what, remedy)
    while not _is_at(lock, path):  # its owner took the file away after it was opened here
        lock.close()
        lock = _locked(path, what, remedy)
    with lock:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _locked(path: Path, what: str, remedy: str) -> TextIO:
    lock = path.open("a+")
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        with lock:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                lock.seek(0)
                raise InputError(f"{what} ({lock.read().strip() or 'unknown'}); {remedy}") from error
        return path.open("a+")
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}")
    lock.flush()
    return lock


def _is_at(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def check_writable(path: str | Path) -> None:
    """InputError now rather than after the work, where the file ``path`` could not be written."""
    parent = Path(path).parent
    if not parent.is_dir():
        raise InputError(f"{path}: no directory {parent}; create it or choose another file")
    if Path(path).is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"{path}: cannot be written; choose another file")


def check_file(path: str | Path, remedy: str, most: int = MOST_BYTES) -> None:
    """InputError unless ``path`` is a file, links followed, of at most so many bytes: no folder, and no pipe or device,
    which could be read for ever."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); {remedy}") from error
    if not stat.S_ISREG(status.st_mode):
        what = "a directory" if stat.S_ISDIR(status.st_mode) else "a pipe or device"
        raise InputError(f"{path}: cannot be read (it is {what}, not a file); {remedy}")
    if status.st_size > most:
        raise InputError(f"{path}: cannot be read ({status.st_size:,} bytes are more than {most:,}); {remedy}")


def read_json(path: Path, remedy: str = "fetch it again", most: int = MOST_BYTES) -> dict[str, Any]:
    """The object that the JSON at ``path`` is; InputError naming the file where it cannot be read or is another."""
    check_file(path, remedy, most)
    try:
        text = path.read_text(encoding="utf-8")
        if (parts := text.count("[") + text.count("{")) > MOST_PARTS:
            raise ValueError(f"{parts:,} arrays and objects are more than {MOST_PARTS:,}")
        value = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, a number of 5,000 digits
        raise InputError(f"{path}: cannot be read as JSON ({error}); {remedy}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: cannot be read as JSON (it is no object); {remedy}")
    return value
