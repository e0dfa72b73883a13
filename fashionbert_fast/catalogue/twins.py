"""Twins: rows of a catalogue that show one product, read the same or show the same photo.

Twins are never each other's negatives and never on both sides of a split: a model would be punished for what is right,
or rewarded for what it has memorised.

Shapes: N rows.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

KINDS = ("group", "title", "photo")  # what may bind two rows


def normalised_title(title: str) -> str:
    """``title`` as a reader tells titles apart: case, variants of characters, punctuation and spaces do not count."""
    folded = unicodedata.normalize("NFKC", title).casefold()
    return " ".join("".join(c if c.isalnum() else " " for c in folded).split())


def connected(*keys: Sequence[Hashable]) -> np.ndarray:
    """int64 (N,): equal numbers for rows connected by equal keys of any one sequence; an empty key connects nothing.

    A row's number is the first row it is connected with.
    """
    root = list(range(len(keys[0])))

    def find(row: int) -> int:
        while root[row] != row:
            root[row] = root[root[row]]
            row = root[row]
        return row

    for sequence in keys:
        first: dict[Hashable, int] = {}
        for row, key in enumerate(sequence):
            if key:
                a, b = find(row), find(first.setdefault(key, row))
                root[max(a, b)] = min(a, b)
    return np.array([find(row) for row in range(len(root))], dtype=np.int64)


def twins(groups: Sequence[str], titles: Sequence[str], image_hashes: Sequence[str]) -> np.ndarray:
    """int64 (N,): equal numbers for rows that share a group, a normalised title or a photo."""
    return connected(groups, [normalised_title(title) for title in titles], image_hashes)


def bound(columns: Mapping[str, Sequence[str]], by: Sequence[str]) -> np.ndarray:
    """int64 (N,): equal numbers for rows of a store's ``columns`` that share one of ``by`` (see KINDS).

    Each row has a number of its own where ``by`` is empty.
    """
    keys = twin_keys(columns)
    return connected([""] * len(columns["id"]), *(keys[kind] for kind in by))


def leaks(of: Any) -> dict[str, dict[str, int]]:
    """Held-out products that training sees in part: what makes an evaluation better than the model is.

    ``of`` is a `FeatureStore` or its columns by name. For each split but "train": how many of its "products" share a
    title, a photo or a group with a training product, and how many share their "title", "photo" and "group".
    """
    columns = of if isinstance(of, Mapping) else of.columns
    keys, splits = twin_keys(columns), columns["split"]
    trained = {
        kind: {key for key, split in zip(keys[kind], splits, strict=True) if key and split == "train"} for kind in KINDS
    }
    found = {}
    for name in sorted(set(splits) - {"train"}):
        rows = [row for row, split in enumerate(splits) if split == name]
        shared = {kind: [keys[kind][row] in trained[kind] for row in rows] for kind in ("title", "photo", "group")}
        products = sum(any(kinds) for kinds in zip(*shared.values(), strict=True))
        found[name] = {"products": products} | {kind: sum(rows) for kind, rows in shared.items()}
    return found


def twin_keys(columns: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """What binds the rows of a store's ``columns``, by KINDS; "" binds nothing."""
    titles = [normalised_title(title) for title in columns["title"]]
    return {"group": columns["group"], "title": titles, "photo": columns["image_hash"]}
