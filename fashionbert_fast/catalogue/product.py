"""A row of a catalogue, and what of a catalogue cannot be used."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fashionbert_fast.errors import InputError

DUPLICATE = "duplicate id"


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
