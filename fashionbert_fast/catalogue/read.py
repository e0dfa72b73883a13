"""Catalogue readers: the Kaggle layout, CSV, JSONL and Parquet, each with image files beside it.

A catalogue becomes a list of `Product`. What cannot be used is reported by file and row, counted by kind and left out;
with ``Problems(strict=True)`` the first one stops the job.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fashionbert_fast.catalogue.product import DUPLICATE, Problems, Product
from fashionbert_fast.catalogue.tables import ASSUMED, DELIMITERS, READERS, undecodable
from fashionbert_fast.errors import InputError

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
}
REQUIRED = ("id", "title")
SPLITS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "dev": "validation",
          "test": "test"}  # fmt: skip
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".JPG", ".JPEG", ".PNG")
NOT_YET = {".h5": "Fashion-Gen HDF5", ".hdf5": "Fashion-Gen HDF5", ".tar": "WebDataset"}


def read_catalogue(
    source: Path, *, problems: Problems, images: Path | None = None, columns: Mapping[str, str] | None = None,
    delimiter: str | None = None, encoding: str | None = None,
) -> list[Product]:  # fmt: skip
    """Products of ``source`` in its order; the first usable row of an id, with later ones as its spares.

    Args:
        source: a directory in the Kaggle layout, or a .csv, .tsv, .jsonl or .parquet file.
        problems: receives what is left out: bad rows, ids that are missing or come twice, empty titles, unknown
            splits, images that are not there.
        images: the image folder; default: ``images/`` beside the table for images found by id (<id>.jpg, .png, ...),
            the table's own folder for a column of image paths.
        columns: field (see COLUMNS) -> column name, for sources that name theirs otherwise; "" ignores the column.
        delimiter: the character between the columns of a CSV, or "tab"; None: see `tables.find_delimiter`.
        encoding: of a CSV or JSONL; None: what its byte order mark says, else UTF-8.

    Raises InputError when the source cannot be read at all, lacks a column, or no product is left.
    """
    source = Path(source)
    table = find_table(source)
    if images is not None and not Path(images).is_dir():
        raise InputError(f"{images}: no such image folder; give --images an existing directory")
    finder = ImageFinder(table.parent, images)
    products: dict[str, Product] = {}
    spares: dict[str, list[Product]] = {}
    try:
        header, rows = READERS[table.suffix.lower()](table, problems, delimiter, encoding)
        names = resolve_columns(table, header, columns or {})
        for number, row in rows:
            product = _product(table, number, row, names, finder, problems)
            if product and product.id in products:
                what = f"id {product.id} was already used in row {products[product.id].row}"
                problems.add(table, number, DUPLICATE, what, id=product.id)
                spares.setdefault(product.id, []).append(product)
            elif product:
                products[product.id] = product
    except OSError as error:
        raise InputError(f"{table}: cannot be read ({error.strerror or error}); check the file") from error
    except UnicodeError as error:  # of encodings in which a bad byte says nothing of the next, such as UTF-16
        raise InputError(f"{table}: {undecodable(encoding)}") from error
    if not products:
        skipped = ", ".join(f"{kind} {count}" for kind, count in problems.by_kind().items()) or "it is empty"
        first = f"; the first: {problems.items[0]}" if problems.items else "; give one with rows"
        raise InputError(f"{table}: no product can be used ({skipped}){first}")
    return [replace(p, spares=tuple(spares[p.id])) if p.id in spares else p for p in products.values()]


def find_table(source: Path) -> Path:
    """The table file of ``source``. InputError naming what is supported where there is none."""
    if not source.exists():
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
                f"{table}: no column {looked} for {name}, it has {', '.join(header) or 'none'}; "
                f"name it with --column {name}=COLUMN{remedy}"
            )
        if found is not None:
            names[name] = found
    return names


class ImageFinder:
    """Finds a product's image file: the path its row gives, else the file of its id's name in the image folder."""

    def __init__(self, folder: Path, images: Path | None) -> None:
        folder = folder.absolute()  # a store names its photos: they must be found from any working directory
        self.by_path = Path(images).absolute() if images is not None else folder
        self.by_id = Path(images).absolute() if images is not None else folder / "images"

    def __call__(self, identity: str, given: str) -> tuple[Path | None, str]:
        """(the file, "") or (None, what is missing)."""
        if given:
            path = self.by_path / given
            return (path, "") if path.is_file() else (None, f"image {path} is not there")
        for suffix in IMAGE_SUFFIXES:
            path = self.by_id / f"{identity}{suffix}"
            if path.is_file():
                return path, ""
        return None, f"image {self.by_id / (identity + '.jpg')} is not there"


def _text(value: Any) -> str:
    """A cell as one line of text; None and NaN are empty."""
    return "" if value is None or value != value else " ".join(str(value).split())


def _product(
    table: Path, number: int, row: Mapping[str, Any], names: Mapping[str, str], finder: ImageFinder,
    problems: Problems,
) -> Product | None:  # fmt: skip
    """The row's product, or None with the reason added to ``problems``."""
    if isinstance(row.get(names.get("image", "")), (bytes, dict)):
        raise InputError(f"{table}: column {names['image']} holds the images themselves, which is not supported yet; "
                         "save them as files and give their paths")  # fmt: skip
    cell = {name: _text(row.get(column)) for name, column in names.items()}
    identity = cell["id"]

    def report(kind: str, what: str) -> None:
        problems.add(table, number, kind, what, id=identity)

    if not identity:
        return report("missing id", f"no {names['id']}")
    if not cell["title"]:
        return report("empty title", f"no {names['title']}")
    split = cell.get("split", "")
    if split and split.lower() not in SPLITS:
        what = f"{names['split']} {split!r}, know {', '.join(SPLITS)} (ignore the column: --column split=)"
        return report("unknown split", what)
    path, missing = finder(identity, cell.get("image", ""))
    if path is None:
        return report("missing image", missing)
    category = cell.get("category", "")
    subcategory = cell.get("subcategory", category)
    return Product(identity, cell["title"], category, subcategory, path, SPLITS.get(split.lower(), ""),
                   cell.get("group", ""), table=table, row=number)  # fmt: skip
