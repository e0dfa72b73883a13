"""Parquet files, which may come from strangers: kilobytes can stand for gigabytes, since pages are compressed and a
text that a million rows share is stored once; and there are damaged ones at which pyarrow aborts its process.

So a catalogue is read by a process of its own (this file, run as a program), which may take `MOST_MEMORY` and passes on
one row at a time. A store's index has been hashed by whoever wrote it, and is read at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

MOST_MEMORY = 3 * 2**27  # bytes
BATCH = 1024  # rows
MOST_TEXT = 2**14  # characters of a text
SMALL, MOST_TIMES = 2**26, 30  # an index of more bytes than that, expanded, is at most so many times the file


class Unreadable(ValueError):
    """It is no Parquet file, a damaged one, or one that takes more than may be had for it. The message says which."""


class Table:
    """A file, read by another process. ``columns``: name -> type.

    Raises:
        Unreadable: at once, or in `rows`.
    """

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env=os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system"},
        )  # fmt: skip
        weakref.finalize(self, self.process.kill)  # where nobody asks for its rows
        self.columns: dict[str, str] = self._line() or {}

    def rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        assert self.process.stdin is not None
        with self.process, contextlib.ExitStack() as at_end:
            at_end.callback(self.process.kill)
            self.process.stdin.write(json.dumps(list(columns)) + "\n")
            self.process.stdin.flush()
            while (values := self._line()) is not None:
                yield dict(zip(columns, values, strict=True))

    def _line(self) -> Any:
        assert self.process.stdout is not None
        if line := self.process.stdout.readline():
            return json.loads(line)
        _, complaint = self.process.communicate()
        if self.process.returncode:
            raise Unreadable((complaint.strip().splitlines() or ["damaged"])[-1][:200])
        return None


def open_index(path: Path) -> pq.ParquetFile:
    """A store's index, in this process. Its metadata are asked for nothing that pyarrow aborts at."""
    file = _opened(path)
    size = path.stat().st_size
    groups = [file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups)]
    if file.metadata.num_rows > size or sum(groups) > max(SMALL, MOST_TIMES * size):
        raise pa.ArrowException(f"{file.metadata.num_rows:,} rows of {sum(groups):,} bytes in {size:,} bytes")
    return file


def texts(file: pq.ParquetFile, name: str) -> list[str]:
    """A column of text; equal ones of a row group are one object. pa.ArrowException where it holds anything else."""
    values: list[str] = []
    for group in range(file.metadata.num_row_groups):
        part = file.read_row_group(group, [name])
        if part.column_names != [name]:
            raise pa.ArrowException(f"column {name} is not in row group {group}")
        for column in part[0].chunks:
            if not isinstance(column, pa.DictionaryArray) or not pa.types.is_string(column.type.value_type):
                raise pa.ArrowException(f"column {name} is of {column.type}, not of text")
            column.validate(full=True)
            if column.null_count:
                raise pa.ArrowException(f"column {name} has rows without a value")
            words = column.dictionary.to_pylist()
            values += [words[index] for index in column.indices.to_pylist()]
    return values


def _opened(path: Path) -> pq.ParquetFile:
    """Texts are read as dictionaries, in which one that many rows share is stored once."""
    are_text = (pa.types.is_string, pa.types.is_large_string)
    names = [field.name for field in pq.read_schema(path) if any(is_text(field.type) for is_text in are_text)]
    return pq.ParquetFile(path, read_dictionary=names)


def _pass_on(path: Path) -> None:
    """The program: columns and types to stdout, those that are wanted from stdin, then a row a line."""
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    file = _opened(path)
    if file.metadata.num_rows > (size := path.stat().st_size):  # products differ, so each takes some
        raise pa.ArrowException(f"{file.metadata.num_rows:,} rows in {size:,} bytes")
    print(json.dumps({field.name: str(field.type)[:80] for field in file.schema_arrow}), flush=True)
    wanted = json.loads(sys.stdin.readline() or "[]")
    for batch in file.iter_batches(BATCH, columns=wanted, use_threads=False) if wanted else ():
        for values in zip(*map(_values, batch.columns), strict=True):
            print(json.dumps(values))


def _values(column: pa.Array) -> Iterator[Any]:
    """One at a time; of a dictionary each word is made once."""
    if not isinstance(column, pa.DictionaryArray):
        yield from (_plain(value.as_py()) for value in column)
        return
    words: dict[int | None, Any] = {None: None}
    for index in column.indices.to_pylist():
        if index not in words:
            words[index] = _plain(column.dictionary[index].as_py())
        yield words[index]


def _plain(value: Any) -> Any:
    """As JSON has it; in the place of a text that is too long an object that says how long it is."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = str(value)
    return text if len(text) <= MOST_TEXT else {"characters": len(text)}


def _limit_memory() -> None:
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where the limit is kept
        here = next(
            int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmData")
        )
        resource.setrlimit(resource.RLIMIT_DATA, (here + MOST_MEMORY, here + MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    _limit_memory()
    try:
        _pass_on(Path(sys.argv[1]))
    except (MemoryError, pa.ArrowMemoryError):
        sys.exit(f"takes more than {MOST_MEMORY // 2**20} MB to read: write smaller row groups")
    except Exception as error:
        sys.exit(" ".join(str(error).split())[:200] or type(error).__name__)
