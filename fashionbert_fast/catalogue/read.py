"""Catalogue readers: the Kaggle layout, CSV, JSONL and Parquet, each with image files beside it.

A catalogue becomes a list of `Product`. What cannot be used is reported by file and row, counted by kind and left out;
with ``Problems(strict=True)`` the first one stops the job.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fashionbert_fast.catalogue.product import DUPLICATE, Problems, Product
from fashionbert_fast.catalogue.queries import BETWEEN, Asked, listed
from fashionbert_fast.catalogue.tables import ASSUMED, DELIMITERS, READERS, cell_problem, one_line, undecodable
from fashionbert_fast.errors import InputError
from fashionbert_fast.files import check_file

FORMATS = "a directory with styles.csv and images/ (Kaggle), or a .csv, .tsv, .jsonl or .parquet file"
# field -> the columns it is looked for in, unless --column names one
COLUMNS: dict[str, tuple[str, ...]] = {
    "id": ("id",),
    "title": ("title", "productDisplayName"),
    "category": ("category", "masterCategory"),
    "subcategory": ("subcategory", "subCategory"),
    "image": ("image",),
    "split": ("split",),
    "group": ("group",),
    "query": ("query", "queries"),
}
REQUIRED = ("id", "title")
SPLITS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "dev": "validation",
          "test": "test"}  # fmt: skip
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".JPG", ".JPEG", ".PNG")
OUTSIDE = "image outside"
NOT_YET = {".h5": "Fashion-Gen HDF5", ".hdf5": "Fashion-Gen HDF5", ".tar": "WebDataset"}


def read_catalogue(
    source: Path, *, problems: Problems, images: Path | None = None, columns: Mapping[str, str] | None = None,
    delimiter: str | None = None, encoding: str | None = None, roots: Sequence[Path] = (),
) -> list[Product]:  # fmt: skip
    """Products of ``source`` in its order; the first usable row of an id, with later ones as its spares. Rows of an id
    may also be its queries, one each, as in a table of clicks: then a later one adds its query and is no spare.

    Args:
        source: a directory in the Kaggle layout, or a .csv, .tsv, .jsonl or .parquet file.
        problems: receives what is left out: bad rows, ids that are missing or come twice, empty titles, unknown
            splits, images that are not there.
        images: the image folder; default: ``images/`` beside the table for images found by id (<id>.jpg, .png, ...),
            the table's own folder for a column of image paths.
        columns: field (see COLUMNS) -> column name, for sources that name theirs otherwise; "" ignores the column.
        delimiter: the character between the columns of a CSV, or "tab"; None: see `tables.find_delimiter`.
        encoding: of a CSV or JSONL; None: what its byte order mark says, else UTF-8.
        roots: further folders that images may lie in; others than these and the image folder are refused.

    Raises InputError when the source cannot be read at all, lacks a column, or no product is left.
    """
    source = Path(source)
    table = find_table(source)
    if images is not None and not Path(images).is_dir():
        raise InputError(f"{images}: no such image folder; give --images an existing directory")
    for root in roots:
        if not Path(root).is_dir():
            raise InputError(f"{root}: no such folder; give --allow-root an existing directory")
    finder = ImageFinder(table.parent, images, roots)
    products: dict[str, Product] = {}
    spares: dict[str, list[Product]] = {}
    asked = Asked()
    try:
        header, rows = READERS[table.suffix.lower()](table, problems, delimiter, encoding)
        names = resolve_columns(table, header, columns or {})
        for number, row in rows(list(names.values())):
            product = _product(table, number, row, names, finder, problems)
            if product and product.queries:
                asked.add(product.id, listed(product.queries))
            if product and product.id in products and not product.queries:
                what = f"id {product.id} was already used in row {products[product.id].row}"
                problems.add(table, number, DUPLICATE, what, id=product.id)
                spares.setdefault(product.id, []).append(product)
            elif product:
                products.setdefault(product.id, product)
    except OSError as error:
        raise InputError(f"{table}: cannot be read ({error.strerror or error}); check the file") from error
    except UnicodeError as error:  # of encodings in which a bad byte says nothing of the next, such as UTF-16
        raise InputError(f"{table}: {undecodable(encoding)}") from error
    if not products:
        skipped = ", ".join(f"{kind} {count}" for kind, count in problems.by_kind().items()) or "it is empty"
        first = f"; the first: {problems.items[0]}" if problems.items else "; give one with rows"
        raise InputError(f"{table}: no product can be used ({skipped}){first}")
    found = asked.given_to(products.values())
    return [replace(p, spares=tuple(spares[p.id])) if p.id in spares else p for p in found]


def find_table(source: Path) -> Path:
    """The table file of ``source``. InputError naming what is supported where there is none."""
    if not os.path.exists(source):
        raise InputError(f"{source}: no such file or directory; give a catalogue: {FORMATS}")
    kind = NOT_YET.get(source.suffix.lower())
    if kind is None and source.is_dir() and any(source.glob("*.tar")):
        kind = "WebDataset"
    if kind:
        raise InputError(f"{source}: {kind} is not supported yet; convert it to {FORMATS}")
    if source.is_dir():
        if not (source / "styles.csv").is_file():
            raise InputError(f"{source}: has no styles.csv, so it is not in the Kaggle layout; give {FORMATS}")
        return source / "styles.csv"
    check_file(source, f"give {FORMATS}", sys.maxsize)
    if source.suffix.lower() not in READERS:
        raise InputError(f"{source}: unknown kind of catalogue {source.suffix!r}; give {FORMATS}")
    return source


def resolve_columns(table: Path, header: list[str], columns: Mapping[str, str]) -> dict[str, str]:
    """field -> column, only the fields that ``table`` has. InputError on a missing or unknown one."""
    for name in columns:
        if name not in COLUMNS:
            raise InputError(f"--column {name}=...: no such field; choose from {', '.join(COLUMNS)}")
    unparted = len(header) == 1 or any(delimiter in column for column in header for delimiter in DELIMITERS)
    remedy = ", or give the --delimiter between columns" if table.suffix.lower() in ASSUMED and unparted else ""
    names = {}
    for name, defaults in COLUMNS.items():
        wanted = columns.get(name)
        found = next((c for c in ((wanted,) if wanted is not None else defaults) if c in header), None)
        if found is None and (wanted or name in REQUIRED):
            looked = wanted or " or ".join(defaults)
            raise InputError(
                f"{table}: no column {looked} for {name}, it has {', '.join(header)[:300] or 'none'}; "
                f"name it with --column {name}=COLUMN{remedy}"
            )
        if found is not None:
            names[name] = found
    return names


class ImageFinder:
    """Finds a product's image file: the path its row gives, else the file of its id's name in the image folder.

    A catalogue may come from a stranger, so what it names must lie in the image folder or in one of ``roots``, links
    followed: else ``../../private.jpg`` would become a product.
    """

    def __init__(self, folder: Path, images: Path | None, roots: Sequence[Path] = ()) -> None:
        folder = folder.absolute()  # a store names its photos: they must be found from any working directory
        self.by_path = Path(images).absolute() if images is not None else folder
        self.by_id = Path(images).absolute() if images is not None else folder / "images"
        # Not by_id's own target: where the folder comes from the stranger, images/ may be a link to anywhere.
        self.roots = [root.resolve() for root in (self.by_path, *roots)]

    def __call__(self, identity: str, given: str) -> tuple[Path | None, str, str]:
        """(the file, "", "") or (None, the kind of problem, what is wrong)."""
        if given:
            return self._found([self.by_path / given])
        if "/" in identity or identity in (".", ".."):
            return None, OUTSIDE, f"id {identity} is no file's name in {self.by_id}; give a column of image paths"
        return self._found([self.by_id / f"{identity}{suffix}" for suffix in IMAGE_SUFFIXES])

    def _found(self, paths: Sequence[Path]) -> tuple[Path | None, str, str]:
        try:
            path = next((path for path in paths if path.is_file()), None)
            real = path.resolve() if path is not None else None
        except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, links in a circle
            reason = getattr(error, "strerror", None) or error
            return None, "missing image", f"image {str(paths[0])[:200]} cannot be looked for ({reason})"
        if path is None or real is None:
            return None, "missing image", f"image {paths[0]} is not there"
        if not any(real.is_relative_to(root) for root in self.roots):
            return None, OUTSIDE, f"image {path} lies outside of {self.by_path}; --allow-root its folder if it is meant"
        return path, "", ""


def _product(
    table: Path, number: int, row: Mapping[str, Any], names: Mapping[str, str], finder: ImageFinder,
    problems: Problems,
) -> Product | None:  # fmt: skip
    """The row's product, or None with the reason added to ``problems``."""
    identity = ""

    def report(kind: str, what: str) -> None:
        problems.add(table, number, kind, what, id=identity)

    identity = "" if cell_problem(row.get(names["id"])) else one_line(row.get(names["id"]))
    for name, column in names.items():
        value = row.get(column)
        for part in value if name == "query" and isinstance(value, list) else (value,):
            if what := cell_problem(part):
                return report("bad row", f"{column} {what} (ignore it: --column {name}=)")
    queries = row.get(names.get("query", ""))
    queries = queries if isinstance(queries, list) else [queries]
    cell = {name: one_line(row.get(column)) for name, column in names.items() if name != "query"}
    if not identity:
        return report("missing id", f"no {names['id']}")
    if not cell["title"]:
        return report("empty title", f"no {names['title']}")
    split = cell.get("split", "")
    if split and split.lower() not in SPLITS:
        what = f"{names['split']} {split!r}, know {', '.join(SPLITS)} (ignore the column: --column split=)"
        return report("unknown split", what)
    path, kind, what = finder(identity, cell.get("image", ""))
    if path is None:
        return report(kind, what)
    category = cell.get("category", "")
    subcategory = cell.get("subcategory", category)
    return Product(identity, cell["title"], category, subcategory, path, SPLITS.get(split.lower(), ""),
                   cell.get("group", ""), queries=BETWEEN.join(listed(BETWEEN.join(map(one_line, queries)))),
                   table=table, row=number)  # fmt: skip
