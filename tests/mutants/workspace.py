"""A copy of the tree in which one mutant at a time is applied, built and tested, and taken back."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tree import BUILD, CPU_ONLY, copy_files, environment, libraries
from fashionbert_fast.errors import InputError
from tests.mutants.mutant import Mutant

NOT_BUILT = "does not compile"
FROM_OUTSIDE = "ended from outside"  # out of memory, say: no test has said anything
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """``killed_by``: the test that failed, `time limit`, or None where every test passed. ``output``: the end of it."""

    killed_by: str | None
    seconds: float
    output: str = ""


class Workspace:
    """A copy of ``files`` of ``root`` at ``directory``, with processes of its own. `stop` ends what is running."""

    def __init__(self, root: Path, files: Sequence[str], directory: Path) -> None:
        self.directory = directory
        self._process: subprocess.Popen | None = None
        self._lock, self._stopped = threading.Lock(), False
        copy_files(root, files, directory)

    # Building --------------------------------------------------------------------------------------------------------
    def build(self) -> None:
        """Configure and build the native library for the CPU, and keep it aside, to be put back after a break.

        InputError with the compiler's words where it does not build: then no mutant would prove anything.
        """
        code, output = self._run(BUILD, 1800, **CPU_ONLY)
        if code != 0:
            raise InputError(f"the unbroken tree does not build: {output[-2000:]}")
        self._whole = self.directory / "build-whole"
        shutil.copytree(self.directory / "build", self._whole / "build")
        for library in libraries(self.directory):
            shutil.copy2(library, self._whole)

    def _put_back_build(self) -> None:
        """Objects and libraries as they were, with their times: ninja finds nothing to do."""
        shutil.rmtree(self.directory / "build")
        shutil.copytree(self._whole / "build", self.directory / "build")
        for library in libraries(self.directory):
            shutil.copy2(self._whole / library.name, library)

    # Breaking --------------------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def _broken(self, mutant: Mutant) -> Iterator[None]:
        path = self.directory / mutant.file
        whole, times = path.read_text(), path.stat()
        path.write_text(mutant.applied(whole))
        try:
            yield
        finally:
            path.write_text(whole)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # compiled files of before are valid again
            if mutant.is_native:
                self._put_back_build()

    def judge(self, mutant: Mutant, seconds: float) -> Outcome:
        """Apply ``mutant``, build what it needs, run its tests (at most ``seconds`` of them) and take it back."""
        started = time.perf_counter()
        with self._broken(mutant):
            if mutant.is_native:
                code, output = self._run(["ninja", "-C", "build", "-j1"], 1800)
                if code != 0:
                    return Outcome(NOT_BUILT, time.perf_counter() - started, output)
            outcome = self.test(mutant.tests, seconds)
        return Outcome(outcome.killed_by, time.perf_counter() - started, outcome.output)

    # Testing ---------------------------------------------------------------------------------------------------------
    def test(self, tests: Sequence[str], seconds: float, *, all_of_them: bool = False, write: bool = False) -> Outcome:
        """Run ``tests`` in order up to the first failure (or ``all_of_them``), in a process of their own.

        write: leave compiled Python files behind; not of a broken tree.
        """
        command = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=short", "-p", "no:cacheprovider"]
        command += [] if all_of_them else ["-x"]
        extra = {} if write else {"PYTHONDONTWRITEBYTECODE": "1"}
        started = time.perf_counter()
        code, output = self._run([*command, *tests], seconds, **extra)
        elapsed = time.perf_counter() - started
        if code == 0:
            return Outcome(None, elapsed, output)
        named = {None: "time limit", -signal.SIGKILL: FROM_OUTSIDE}.get(code, f"exit status {code}")
        failed = _FAILED.findall(output) if code == 1 else []
        return Outcome(failed[0] if failed else named, elapsed, output)

    def _run(self, command: Sequence[str], seconds: float, **extra: str) -> tuple:
        """(exit status, None after ``seconds``; what it printed), by one thread, seeing this copy's package only."""
        with self._lock:
            if self._stopped:
                raise KeyboardInterrupt
            self._process = process = subprocess.Popen(
                command, cwd=self.directory, env=environment(self.directory, OMP_NUM_THREADS="1", **extra), text=True,
                errors="replace", start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self._end(process)
            return None, process.communicate()[0]
        if self._stopped:  # by `stop`, not by itself
            raise KeyboardInterrupt
        return process.returncode, output

    @staticmethod
    def _end(process: subprocess.Popen) -> None:
        """The process and all it started: they are a session of their own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def stop(self) -> None:
        """End what is running and run nothing more."""
        with self._lock:
            self._stopped = True
            if self._process is not None and self._process.poll() is None:
                self._end(self._process)
