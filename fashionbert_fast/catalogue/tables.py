"""Tables of products, read row by row: CSV, JSONL and Parquet. They may come from strangers: what a row may take is
bounded, so that a file of any size is read in the same memory."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from fashionbert_fast.catalogue.product import Problems
from fashionbert_fast.errors import CONTROLS, InputError

Row = tuple[int, Mapping[str, Any]]  # line number, column -> value
Table = tuple[list[str], Callable[[Sequence[str]], Iterator[Row]]]  # its columns, and the rows of some of them

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}  # what is looked for in a header
ASSUMED = {".csv": ",", ".tsv": "\t"}  # where a header holds none of them, or several
MOST_ROW = 2**22  # characters
MOST_PARTS = 10_000  # arrays and objects of a row of JSON, each of which takes 2 characters and 60 bytes in memory
MOST_COLUMNS = 10_000
MOST_CELL = 2**14  # characters
OF_MANY = ("struct", "list", "large_list", "fixed_size", "map", "binary", "large_binary", "extension")  # types of Arrow
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip


def parse_delimiter(text: str) -> str:
    """A character, or "tab" or "\\t", which no shell lets one type, as a character. InputError on anything else."""
    delimiter = "\t" if text in ("tab", "\\t") else text
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise InputError(f"--delimiter {text!r}: must be one character, or tab")
    return delimiter


def find_delimiter(line: str, assumed: str) -> str:
    """What is between the columns of a header: the one of DELIMITERS that parts it; ``assumed`` where none or several
    do."""
    found = [delimiter for delimiter in DELIMITERS if len(next(csv.reader([line], delimiter=delimiter), [])) > 1]
    return found[0] if len(found) == 1 else assumed


def _open_text(path: Path, encoding: str | None) -> TextIO:
    """``path`` in ``encoding``; None: what its byte order mark says, else UTF-8.

    Undecodable bytes become surrogates, which rows are checked for.
    """
    try:
        file = path.open("rb")
        start = file.peek(4)[:4]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    marked = next((name for mark, name in BYTE_ORDER_MARKS.items() if start.startswith(mark)), None)
    if encoding is None and marked is None and b"\0" in start:
        raise InputError(f"{path}: is not UTF-8 text; give its --encoding, say utf-16-le")
    try:
        name = codecs.lookup(encoding or marked or "utf-8").name
        name = "utf-8-sig" if name == "utf-8" else name  # takes the mark away where there is one
        return io.TextIOWrapper(file, name, errors="surrogateescape", newline="")
    except LookupError as error:
        raise InputError(f"--encoding {encoding}: no such encoding; give utf-8, cp1252 or utf-16, say") from error


class _Lines:
    """The lines of a text, counted. csv.Error where a row, which `begin_row` begins, takes more than `MOST_ROW`; the
    next line is then what follows that one."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.number, self.taken = file, 0, 0

    def begin_row(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = part = self.file.readline(MOST_ROW)
        if not line:
            raise StopIteration
        self.number += 1
        self.taken += len(line)
        while part and not part.endswith(("\n", "\r")):
            part = self.file.readline(MOST_ROW)
            self.taken += len(part)
        if self.taken > MOST_ROW:
            raise csv.Error(f"{self.taken:,} characters are more than {MOST_ROW:,}")
        return line


def one_line(value: Any) -> str:
    """A cell as one line of text without control characters; None and NaN are empty."""
    return "" if value is None or value != value else " ".join(CONTROLS.sub(" ", str(value)).split())


def cell_problem(value: Any) -> str:
    """Why a cell cannot be used as a text, to follow its column's name; "" where it can."""
    if isinstance(value, (dict, list)):
        return "holds an object or a list, not a text"
    text = one_line(value)
    if len(text) > MOST_CELL:
        return f"has {len(text):,} characters, more than {MOST_CELL:,}"
    # Half of a character of UTF-16, which JSON can name and no file can hold.
    is_text = text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)
    return "" if is_text else "has half of a character (a lone surrogate)"


def _is_undecodable(text: str) -> bool:
    return any("\udc80" <= letter <= "\udcff" for letter in text) if not text.isascii() else False


def undecodable(encoding: str | None) -> str:
    return f"bytes that are not {encoding or 'UTF-8'} (give the file's --encoding, say cp1252)"


def _read_csv(path: Path, problems: Problems, delimiter: str | None, encoding: str | None) -> Table:
    between = None if delimiter is None else parse_delimiter(delimiter)
    file = _open_text(path, encoding)
    lines = _Lines(file)
    try:
        first_line = next(lines, "")
        between = between or find_delimiter(first_line, ASSUMED[path.suffix.lower()])
        reader = csv.reader(chain([first_line], lines), delimiter=between)
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise InputError(f"{path}: row 1: is not CSV ({error}); check the file") from error
    if _is_undecodable("".join(header)):
        raise InputError(f"{path}: row 1: {undecodable(encoding)}")

    def rows(columns: Sequence[str]) -> Iterator[Row]:
        with file:
            while True:
                lines.begin_row()
                first = lines.number + 1  # a quoted field may span lines: rows are named by their first
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
                    name = DELIMITERS.get(between, repr(between))
                    what = f"{len(cells)} fields where the header has {len(header)} (an unquoted {name} or quote?)"
                    problems.add(path, first, "bad row", what, id=cells[0] if header[0] == "id" else "")
                elif _is_undecodable("".join(cells)):
                    problems.add(path, first, f"not {encoding or 'UTF-8'}", undecodable(encoding))
                else:
                    yield first, dict(zip(header, cells, strict=True))

    return header, rows


def _read_jsonl(path: Path, problems: Problems, delimiter: str | None, encoding: str | None) -> Table:
    """Read twice, for any object may lack a key: the columns are those of all of them, and to keep the objects until
    they are known could take 25 times the file."""
    _refuse(path, delimiter=delimiter)
    header: dict[str, None] = {}
    for _, value in _objects(path, problems, encoding):
        header.update(dict.fromkeys(value))
        if len(header) > MOST_COLUMNS:
            raise InputError(f"{path}: has more than {MOST_COLUMNS:,} columns; check that its keys are columns' names")

    def rows(columns: Sequence[str]) -> Iterator[Row]:
        return _objects(path, Problems(), encoding)

    return list(header), rows


def _objects(path: Path, problems: Problems, encoding: str | None) -> Iterator[tuple[int, dict[str, Any]]]:
    with _open_text(path, encoding) as file:
        lines = _Lines(file)
        while True:
            lines.begin_row()
            try:
                line = next(lines)
                if (parts := line.count("[") + line.count("{")) > MOST_PARTS:
                    raise ValueError(f"{parts:,} arrays and objects are more than {MOST_PARTS:,}")
                value = json.loads(line) if line.strip() else None
            except StopIteration:
                return
            except (ValueError, RecursionError, csv.Error) as error:
                problems.add(path, lines.number, "bad row", f"is not JSON ({error})")
                continue
            if isinstance(value, dict) and not _is_undecodable(line):
                yield lines.number, value
            elif isinstance(value, dict):
                problems.add(path, lines.number, f"not {encoding or 'UTF-8'}", undecodable(encoding))
            elif line.strip():
                problems.add(path, lines.number, "bad row", "is not a JSON object")


def _read_parquet(path: Path, problems: Problems, delimiter: str | None, encoding: str | None) -> Table:
    from fashionbert_fast.catalogue import parquet

    _refuse(path, delimiter=delimiter, encoding=encoding)
    try:
        table = parquet.Table(path)
    except parquet.Unreadable as error:
        raise InputError(f"{path}: is not a Parquet file ({error}); check the file") from error

    def rows(columns: Sequence[str]) -> Iterator[Row]:
        for name in columns:
            if table.columns[name].startswith(OF_MANY):
                raise InputError(
                    f"{path}: column {name} is of {table.columns[name]}; where it holds the images themselves, which "
                    "is not supported yet, save them as files and give their paths; where it holds a product's "
                    "queries, give them a row each, in --queries FILE"
                )
        try:
            yield from enumerate(table.rows(columns), 1)
        except parquet.Unreadable as error:
            raise InputError(f"{path}: cannot be read ({error}); check the file") from error

    return list(table.columns), rows


def _refuse(path: Path, **options: str | None) -> None:
    for name, value in options.items():
        if value is not None:
            raise InputError(f"--{name} {value!r}: {path} has none, being {path.suffix}; leave it out")


# (table, problems, delimiter, encoding) -> its columns and rows; the last two are None where they are to be found out
READERS: dict[str, Callable[[Path, Problems, str | None, str | None], Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}
