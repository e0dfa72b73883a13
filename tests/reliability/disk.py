"""`faulty_disk.cpp`, compiled, for ranks whose disk shall fail."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from fashionbert_fast.errors import InputError
from tests.reliability.workload import fashionbert

CRASH = 0  # in place of an errno: the process is killed
FAULTS = {"crash": CRASH, "ENOSPC": errno.ENOSPC, "EIO": errno.EIO}


def compiled(folder: Path) -> Path:
    """The library, compiled once below ``folder``. InputError where there is no C++ compiler."""
    library = folder / "faulty_disk.so"
    if not library.exists():
        compiler = os.environ.get("CXX", "c++")
        source = Path(__file__).with_name("faulty_disk.cpp")
        command = [compiler, "-O1", "-std=c++17", "-shared", "-fPIC", "-o", str(library), str(source)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            raise InputError(f"{compiler}: cannot be run ({error.strerror}); set CXX to a C++ compiler") from error
        if done.returncode:
            raise InputError(f"{source}: does not compile ({done.stderr.splitlines()[0]}); Linux on x86-64 or ARM only")
    return library


@dataclass(frozen=True)
class Fault:
    """Of one rank: of the calls that change something below ``directory`` from the start of training on, ``count`` from
    the ``first`` on fail with ``error``; ``first`` 0: none. ``log``: all of them, a line each."""

    library: Path
    directory: Path
    log: Path
    first: int = 0
    error: int = CRASH
    count: int = 1
    rank: int = 0

    def begin(self) -> None:
        """From now on, in this process and those that are forked from it."""
        import safetensors  # noqa: F401  # its code must have its place

        all_signals = signal.valid_signals
        signal.valid_signals = lambda: all_signals() - {signal.SIGSYS}  # multiprocessing blocks them in a thread
        faulty_disk = ctypes.CDLL(str(self.library)).faulty_disk
        faulty_disk.argtypes = (ctypes.c_char_p, ctypes.c_long, ctypes.c_long, ctypes.c_int, ctypes.c_char_p)
        below, log = str(self.directory.resolve()).encode(), str(self.log).encode()
        status = faulty_disk(below, self.first, self.count, self.error, log)
        assert status == 0, f"no seccomp filter here: {os.strerror(-status)}"


def on_faulty_disk(fault: Fault, *words: str) -> int:
    """`fashionbert WORDS` with that disk once training begins: for `Ranks`."""
    from fashionbert_fast.engine import train as module

    train = module.train

    def armed(run, first_step: int) -> None:
        if run.rank == fault.rank:
            fault.begin()
        train(run, first_step)

    module.train = armed
    return fashionbert(*words)
