"""Catalogue readers: the Kaggle layout, CSV, JSONL and Parquet, each with image files beside it.

A catalogue becomes a list of `Product`. What cannot be used is reported by file and row, counted by kind and left out;
with ``Problems(strict=True)`` the first one stops the job.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from fashionbert_fast.errors import InputError

FORMATS = "a directory with styles.csv and images/ (Kaggle), or a .csv, .jsonl or .parquet file"
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
DUPLICATE = "duplicate id"
SPLITS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "dev": "validation",
          "test": "test"}  # fmt: skip
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".JPG", ".JPEG", ".PNG")
NOT_YET = {".h5": "Fashion-Gen HDF5", ".hdf5": "Fashion-Gen HDF5", ".tar": "WebDataset"}


@dataclass(frozen=True)
class Product:
    """One row of a catalogue: a product with one title and one photo. ``split`` is "" when the source has none;
    ``image`` exists but has not been opened.

    group: what rows showing one product share ("": this row alone). image_hash: of the photo's pixels ("": unknown).
    table, row: where it stands, for messages. spares: later rows of the same id, one of which takes this one's place
    when its photo turns out to be unreadable.
    """

    id: str
    title: str
    category: str
    subcategory: str
    image: Path
    split: str
    group: str = ""
    image_hash: str = ""
    table: Path | str = ""
    row: int = 0
    spares: tuple[Product, ...] = ()


@dataclass(frozen=True)
class Problem:
    """Something that was left out: where (``row`` counts a file's lines from 1; 0: none), what kind, what exactly."""

    file: str
    row: int
    id: str
    kind: str
    what: str

    def __str__(self) -> str:
        place = f": row {self.row}" if self.row else ""
        return f"{self.file}{place}{f' (id {self.id})' if self.id else ''}: {self.what}"


@dataclass
class Problems:
    """Collects what is wrong with a source. ``strict``: raise InputError at the first instead."""

    strict: bool = False
    items: list[Problem] = field(default_factory=list)

    def add(self, file: Path | str, row: int, kind: str, what: str, *, id: str = "") -> None:
        """Report that ``file``'s row cannot be used. InputError when strict."""
        problem = Problem(str(file), row, id, kind, what)
        if self.strict:
            raise InputError(f"{problem}; correct it, or leave --strict out to skip such rows")
        self.items.append(problem)

    def withdraw_duplicate(self, spare: Product) -> None:
        """Forget that ``spare`` came second: it was needed after all."""
        self.items = [p for p in self.items if (p.kind, p.id, p.row) != (DUPLICATE, spare.id, spare.row)]

    @property
    def count(self) -> int:
        return len(self.items)

    def by_kind(self) -> dict[str, int]:
        """How many of each kind, most frequent first."""
        return dict(Counter(problem.kind for problem in self.items).most_common())

    def to_jsonl(self) -> str:
        """A JSON object a line: file, row, id, kind, what."""
        return "".join(json.dumps(asdict(problem), ensure_ascii=True) + "\n" for problem in self.items)


Row = tuple[int, Mapping[str, Any]]  # line number, column -> value


def read_catalogue(
    source: Path, *, problems: Problems, images: Path | None = None, columns: Mapping[str, str] | None = None
) -> list[Product]:
    """Products of ``source`` in its order; the first usable row of an id, with later ones as its spares.

    Args:
        source: a directory in the Kaggle layout, or a .csv, .jsonl or .parquet file.
        problems: receives what is left out: bad rows, ids that are missing or come twice, empty titles, unknown
            splits, images that are not there.
        images: the image folder; default: ``images/`` beside the table for images found by id (<id>.jpg, .png, ...),
            the table's own folder for a column of image paths.
        columns: field (see COLUMNS) -> column name, for sources that name theirs otherwise; "" ignores the column.

    Raises InputError when the source cannot be read at all, lacks a column, or no product is left.
    """
    source = Path(source)
    table = find_table(source)
    if images is not None and not Path(images).is_dir():
        raise InputError(f"{images}: no such image folder; give --images an existing directory")
    header, rows = READERS[table.suffix.lower()](table, problems)
    names = resolve_columns(table, header, columns or {})
    finder = ImageFinder(table.parent, images)
    products: dict[str, Product] = {}
    spares: dict[str, list[Product]] = {}
    try:
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
    names = {}
    for name, defaults in COLUMNS.items():
        wanted = columns.get(name)
        found = next((c for c in ((wanted,) if wanted is not None else defaults) if c in header), None)
        if found is None and (wanted or name in REQUIRED):
            looked = wanted or " or ".join(defaults)
            raise InputError(
                f"{table}: no column {looked} for {name}, it has {', '.join(header) or 'none'}; "
                f"name it with --column {name}=COLUMN"
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
