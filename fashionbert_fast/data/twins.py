"""Twins: rows of a catalogue that show one product, read the same or show the same photo.

Twins are never each other's negatives and never on both sides of a split: a model would be punished for what is right,
or rewarded for what it has memorised.

Shapes: N rows.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Hashable, Sequence

import numpy as np


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
