"""What shoppers asked for when they found a product: pairs of a query and a product, from a catalogue's own column or a
table of clicks beside it. A pair counts once, however often it comes; queries that read the same are one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fashionbert_fast.catalogue.product import Problems, Product
from fashionbert_fast.catalogue.tables import READERS, cell_problem, one_line, undecodable
from fashionbert_fast.catalogue.twins import normalised_title
from fashionbert_fast.errors import InputError
from fashionbert_fast.files import check_file

FORMATS = "a .csv, .tsv, .jsonl or .parquet file with columns query and id"
BETWEEN = "\n"  # a product's queries, a line each


def listed(cell: str) -> list[str]:
    """The queries in `Product.queries` or in a row of a store's column; what has no word is none."""
    return [line for line in cell.split(BETWEEN) if normalised_title(line)]


class Asked:
    """Collects queries by the product's id, in the order they come in."""

    def __init__(self) -> None:
        self.by_id: dict[str, dict[str, str]] = {}  # id -> a query as a reader reads it -> as it was first written

    def add(self, identity: str, queries: Iterable[str]) -> None:
        for query in queries:
            self.by_id.setdefault(identity, {}).setdefault(normalised_title(query), query)

    def given_to(self, products: Iterable[Product]) -> list[Product]:
        """The products, each with its queries after those that it has."""

        def given(product: Product) -> Product:
            own = {normalised_title(query): query for query in listed(product.queries)}
            return replace(product, queries=BETWEEN.join((own | self.by_id[product.id] | own).values()))

        return [given(product) if product.id in self.by_id else product for product in products]


def read_queries(
    path: Path, products: Sequence[Product], problems: Problems, columns: Mapping[str, str] | None = None
) -> Asked:
    """The pairs of a table, which is in UTF-8 or in what its byte order mark says.

    Args:
        problems: receives what is left out: bad rows, queries without a word, ids of no product among ``products``.
        columns: "id" and "query" -> the column's name, for a table that has it under that name.

    Raises InputError when the table cannot be read at all, lacks a column, or no pair is left.
    """
    check_file(path, f"give {FORMATS}", sys.maxsize)
    if path.suffix.lower() not in READERS:
        raise InputError(f"{path}: unknown kind of table {path.suffix!r}; give {FORMATS}")
    known, asked = {product.id for product in products}, Asked()
    try:
        header, rows = READERS[path.suffix.lower()](path, problems, None, None)
        names = {name: _column(path, header, name, (columns or {}).get(name)) for name in ("id", "query")}
        for number, row in rows(list(names.values())):
            kind, what = _row_problem(row, names, known)
            if what:
                problems.add(path, number, kind, what)
            else:
                asked.add(one_line(row[names["id"]]), [one_line(row[names["query"]])])
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check the file") from error
    except UnicodeError as error:
        raise InputError(f"{path}: {undecodable(None)}") from error
    if not asked.by_id:
        first = next((f"; the first problem: {p}" for p in problems.items if p.file == str(path)), "")
        raise InputError(f"{path}: no row has a query of a product that can be used{first or '; give one with rows'}")
    return asked


def _column(path: Path, header: Sequence[str], name: str, other: str | None) -> str:
    found = next((column for column in (other, name) if column in header), None)
    if not found:
        raise InputError(
            f"{path}: no column {other or name}, it has {', '.join(header)[:300] or 'none'}; give {FORMATS}"
        )
    return found


def _row_problem(row: Mapping[str, Any], names: Mapping[str, str], known: set[str]) -> tuple[str, str]:
    """(its kind, what exactly) of the first thing that is wrong with a row; ("", "")."""
    for column in names.values():
        if what := cell_problem(row.get(column)):
            return "bad row", f"{column} {what}"
    identity, query = (one_line(row.get(names[name])) for name in ("id", "query"))
    if not identity:
        return "missing id", f"no {names['id']}"
    if not normalised_title(query):
        return "empty query", f"{names['query']} has no word"
    if identity not in known:
        return "unknown product", f"id {identity[:200]} is none of the catalogue's products that can be used"
    return "", ""
