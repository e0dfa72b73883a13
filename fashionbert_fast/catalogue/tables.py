"""Tables of products, read row by row: CSV, JSONL and Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from fashionbert_fast.catalogue.product import Problems
from fashionbert_fast.errors import InputError

Row = tuple[int, Mapping[str, Any]]  # line number, column -> value


def _open_text(path: Path) -> TextIO:
    """UTF-8, with or without a byte order mark; undecodable bytes become surrogates, which rows are checked for."""
    try:
        file = path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")
        start = file.buffer.peek(4)[:4]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if start[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in start:
        raise InputError(f"{path}: is not UTF-8 text (UTF-16?); convert it: iconv -f UTF-16 -t UTF-8")
    return file


def _is_undecodable(text: str) -> bool:
    return any("\udc80" <= letter <= "\udcff" for letter in text) if not text.isascii() else False


NOT_UTF8 = "bytes that are not UTF-8 (convert the file, say: iconv -f ISO-8859-1 -t UTF-8)"


def _read_csv(path: Path, problems: Problems) -> tuple[list[str], Iterator[Row]]:
    file = _open_text(path)
    reader = csv.reader(file)
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise InputError(f"{path}: row 1: is not CSV ({error}); check the file") from error
    if _is_undecodable("".join(header)):
        raise InputError(f"{path}: row 1: {NOT_UTF8}")

    def rows() -> Iterator[Row]:
        with file:
            while True:
                first = reader.line_num + 1  # a quoted field may span lines: rows are named by their first
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    problems.add(path, first, "bad row", f"is not CSV ({error})")
                    continue
                if not cells:
                    continue
                if len(cells) != len(header):
                    what = f"{len(cells)} fields where the header has {len(header)} (an unquoted comma or quote?)"
                    problems.add(path, first, "bad row", what, id=cells[0] if header[0] == "id" else "")
                elif _is_undecodable("".join(cells)):
                    problems.add(path, first, "not UTF-8", NOT_UTF8)
                else:
                    yield first, dict(zip(header, cells, strict=True))

    return header, rows()


def _read_jsonl(path: Path, problems: Problems) -> tuple[list[str], Iterator[Row]]:
    parsed: list[Row] = []
    header: dict[str, None] = {}  # any object may lack a key: the columns are those of all of them
    with _open_text(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as error:
                problems.add(path, number, "bad row", f"is not JSON ({error})")
                continue
            if not isinstance(value, dict):
                problems.add(path, number, "bad row", "is not a JSON object")
            elif _is_undecodable(line):
                problems.add(path, number, "not UTF-8", NOT_UTF8)
            else:
                header.update(dict.fromkeys(value))
                parsed.append((number, value))
    return list(header), iter(parsed)


def _read_parquet(path: Path, problems: Problems) -> tuple[list[str], Iterator[Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: is not a Parquet file ({str(error).splitlines()[0]}); check the file") from error

    def rows() -> Iterator[Row]:
        number = 0
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield number, row

    return file.schema_arrow.names, rows()


READERS: dict[str, Callable[[Path, Problems], tuple[list[str], Iterator[Row]]]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}
