"""A row of a catalogue, and what of a catalogue cannot be used."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fashionbert_fast.errors import InputError

DUPLICATE = "duplicate id"
MOST_LISTED = 100_000  # problems: a file of nothing but bad rows may have more of them than there is memory for


@dataclass(frozen=True)
class Product:
    """One row of a catalogue: a product with one title and one photo. ``split`` is "" when the source has none;
    ``image`` exists but has not been opened.

    group: what rows showing one product share ("": this row alone). image_hash: of the photo's pixels ("": unknown).
    queries: what was asked for when it was found, a query a line.
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
    queries: str = ""
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
    """Collects what is wrong with a source: counts all of it, lists as many as `MOST_LISTED`. ``strict``: raise
    InputError at the first instead."""

    strict: bool = False
    items: list[Problem] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)  # by kind

    def add(self, file: Path | str, row: int, kind: str, what: str, *, id: str = "") -> None:
        """Report that ``file``'s row cannot be used. InputError when strict."""
        problem = Problem(str(file), row, id[:200], kind, what[:500])
        if self.strict:
            raise InputError(f"{problem}; correct it, or leave --strict out to skip such rows")
        self.counts[kind] += 1
        if len(self.items) < MOST_LISTED:
            self.items.append(problem)

    def withdraw_duplicates(self, spares: Collection[Product]) -> None:
        """Forget that ``spares`` came second: they were needed after all."""
        rows = {spare.row for spare in spares}
        self.items = [p for p in self.items if p.kind != DUPLICATE or p.row not in rows]
        self.counts[DUPLICATE] -= len(rows)

    @property
    def count(self) -> int:
        return self.counts.total()

    def by_kind(self) -> dict[str, int]:
        """How many of each kind, most frequent first."""
        return {kind: count for kind, count in self.counts.most_common() if count}

    def to_jsonl(self) -> str:
        """A JSON object a line: file, row, id, kind, what. The last one says how many are not listed, if any."""
        items = list(self.items)
        if unlisted := self.count - len(items):
            items.append(Problem("", 0, "", "not listed", f"{unlisted} more are counted and not listed"))
        return "".join(json.dumps(asdict(problem), ensure_ascii=True) + "\n" for problem in items)
