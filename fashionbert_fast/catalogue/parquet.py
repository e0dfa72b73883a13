"""Parquet files, which may come from strangers: kilobytes can stand for gigabytes, since pages are compressed and a
text that a million rows share is stored once. So it is shared here too, and sizes are bounded before anything is read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

MOST_CHUNK = 2**28  # bytes of a column in a row group, decompressed
BATCH = 1024  # rows


def open_parquet(path: Path, wanted: Collection[str]) -> pq.ParquetFile:
    """The file, its texts to be read as dictionaries.

    Raises:
        pa.ArrowException, OSError: it is none, or stands for more than its bytes should: products differ, so each takes
            a byte at least.
    """
    file = pq.ParquetFile(path, read_dictionary=[field.name for field in pq.read_schema(path) if _is_text(field.type)])
    if file.metadata.num_rows > (size := path.stat().st_size):
        raise pa.ArrowException(f"{file.metadata.num_rows:,} rows in {size:,} bytes")
    for group in range(file.metadata.num_row_groups):
        parts = file.metadata.row_group(group)
        for part in map(parts.column, range(parts.num_columns)):
            if part.path_in_schema.split(".")[0] in wanted and part.total_uncompressed_size > MOST_CHUNK:
                what = f"column {part.path_in_schema} of row group {group} takes {part.total_uncompressed_size:,} bytes"
                raise pa.ArrowException(f"{what}, more than {MOST_CHUNK:,}: write smaller row groups")
    return file


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)


def texts(file: pq.ParquetFile, name: str) -> list[str]:
    """A column of text; equal ones of a row group are one object. pa.ArrowException where it holds anything else."""
    values: list[str] = []
    for group in range(file.metadata.num_row_groups):
        for column in file.read_row_group(group, [name])[0].chunks:
            if not isinstance(column, pa.DictionaryArray) or not pa.types.is_string(column.type.value_type):
                raise pa.ArrowException(f"column {name} is of {column.type}, not of text")
            if column.null_count:
                raise pa.ArrowException(f"column {name} has rows without a value")
            words = column.dictionary.to_pylist()
            values += [words[index] for index in column.indices.to_pylist()]
    return values


def rows(file: pq.ParquetFile, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of the given columns, one at a time: each is made when it is asked for."""
    for batch in file.iter_batches(BATCH, columns=list(columns)):
        parts = [batch.column(name) for name in columns]
        for row in range(batch.num_rows):
            yield {name: part[row].as_py() for name, part in zip(columns, parts, strict=True)}
