"""NVIDIA Nsight: the command lines that watch this very run, and an Nsight Systems export read into a timeline.

Tables and columns are those of NVIDIA's "SQLite Export Schema Reference". They are created lazily: a run without copies
has no table of copies.
"""

from __future__ import annotations

import shlex
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from fashionbert_fast.errors import InputError
from fashionbert_fast.profiling.ranges import DOMAIN, OPERATORS, PHASES, phase_of
from fashionbert_fast.profiling.timeline import Kernel, Span, Timeline

# nsys's ENUM_NSYS_EVENT_TYPE
PUSH_POP_RANGE, START_END_RANGE, DOMAIN_CREATED = 59, 60, 75
NANOSECOND = 1e-9
EXPORT = "nsys export --type sqlite --output {stem}.sqlite {stem}.nsys-rep"


def commands(program: Sequence[str], directory: Path) -> dict[str, list[str]]:
    """Tool -> its command line around ``program``, which must capture between cudaProfilerStart and Stop."""
    nsys = [
        "nsys", "profile", "--trace=cuda,nvtx,cublas,osrt", "--capture-range=cudaProfilerApi",
        "--capture-range-end=stop", "--cuda-memory-usage=true", "--force-overwrite=true", "--export=sqlite",
        f"--output={directory / 'nsys'}",
    ]  # fmt: skip
    ncu = [
        "ncu", "--profile-from-start=off", "--target-processes=all", "--nvtx", "--set=full",
        f"--nvtx-include={DOMAIN}@encoder layer 0", f"--nvtx-include={DOMAIN}@backward of encoder layer 0",
        "--force-overwrite", f"--export={directory / 'ncu'}",
    ]  # fmt: skip
    return {"nsys": [*nsys, *program], "ncu": [*ncu, *program]}


def as_shell(command: Sequence[str]) -> str:
    return shlex.join(command)


class _Export:
    """The tables of an export that are there."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        strings = connection.execute("SELECT id, value FROM StringIds") if "StringIds" in self.tables else ()
        self.strings: dict[int, str] = dict(strings)

    def rows(self, table: str, *columns: str) -> Iterator[tuple]:
        """Those columns of a table, None for one that this version of Nsight does not write."""
        if table not in self.tables:
            return
        there = {row[1] for row in self.connection.execute(f"PRAGMA table_info({table})")}
        chosen = ", ".join(f'"{column}"' if column in there else "NULL" for column in columns)
        yield from self.connection.execute(f"SELECT {chosen} FROM {table}")


def read_nsys(path: Path) -> Timeline:
    """The timeline of ``path``, what `nsys export --type sqlite` wrote of a run with NVTX ranges.

    Raises:
        InputError: no such export, or one without ranges of ours.
    """
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            return _timeline(_Export(connection), path)
        finally:
            connection.close()
    except sqlite3.Error as error:
        remedy = EXPORT.format(stem=path.with_suffix(""))
        raise InputError(f"{path}: not an Nsight Systems export ({error}); make one with `{remedy}`") from error


def _timeline(export: _Export, path: Path) -> Timeline:
    if "NVTX_EVENTS" not in export.tables:
        raise sqlite3.DatabaseError("no table NVTX_EVENTS")
    ranges = list(_ranges(export))
    if not any(phase_of(span.name) == "step" for span in ranges):
        raise InputError(
            f"{path}: has no NVTX range `step` of the domain {DOMAIN}; capture with --trace=cuda,nvtx and "
            "`fashionbert profile --ranges-only` or train.nvtx=true"
        )
    launches = {
        (process, correlation): start * NANOSECOND
        for correlation, start, thread in export.rows(
            "CUPTI_ACTIVITY_KIND_RUNTIME", "correlationId", "start", "globalTid"
        )
        for process in (_process(thread),)
    }
    kernels = list(_kernels(export, launches))
    memory = _memory(export)
    return Timeline("cuda", ranges, [], kernels, memory)


def _process(serialized: int | None) -> int:
    """Of nsys's globalTid or globalPid: machine and process, without the thread in its low 24 bits."""
    return 0 if serialized is None else serialized >> 24


def _ranges(export: _Export) -> Iterator[Span]:
    columns = ("start", "end", "eventType", "text", "textId", "domainId", "globalTid")
    events = list(export.rows("NVTX_EVENTS", *columns))
    named = {(_process(e[6]), e[5]): e[3] or export.strings.get(e[4]) for e in events if e[2] == DOMAIN_CREATED}
    for start, end, kind, text, text_id, domain, thread in events:
        name = text or export.strings.get(text_id, "")
        if kind not in (PUSH_POP_RANGE, START_END_RANGE) or end is None:
            continue
        if named.get((_process(thread), domain)) != DOMAIN:
            continue
        if phase_of(name) not in PHASES:
            name = OPERATORS + name
        yield Span(name, start * NANOSECOND, end * NANOSECOND, thread or 0)


def _kernels(export: _Export, launches: dict) -> Iterator[Kernel]:
    common = ("start", "end", "streamId", "correlationId", "globalPid")
    for *work, demangled, short in export.rows("CUPTI_ACTIVITY_KIND_KERNEL", *common, "demangledName", "shortName"):
        name = export.strings.get(short) or export.strings.get(demangled) or "kernel"
        yield _kernel(name, work, launches, None)
    for table, name in (("MEMCPY", "copy"), ("MEMSET", "fill")):
        for *work, size in export.rows(f"CUPTI_ACTIVITY_KIND_{table}", *common, "bytes"):
            yield _kernel(name, work, launches, size)


def _kernel(name: str, work: list, launches: dict, size: int | None) -> Kernel:
    start, end, stream, correlation, process = work
    launched = launches.get((_process(process), correlation), start * NANOSECOND)
    return Kernel(name, start * NANOSECOND, end * NANOSECOND, launched, stream or 0, bytes=size)


def _memory(export: _Export) -> list[tuple[float, int]]:
    """(time, bytes) the process has from the driver, by nsys's own names of the operations."""
    found, total = [], 0
    labels = dict(export.rows("ENUM_CUDA_DEV_MEM_EVENT_OPER", "id", "label"))
    gives_back = {number for number, label in labels.items() if "dealloc" in label.lower()} or {1}
    events = export.rows("CUDA_GPU_MEMORY_USAGE_EVENTS", "start", "bytes", "memoryOperationType")
    for start, size, operation in sorted(events):
        total += -size if operation in gives_back else size
        found.append((start * NANOSECOND, total))
    return found
