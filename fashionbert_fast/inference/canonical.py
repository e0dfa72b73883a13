"""Equal titles are one text and equal photos one image, whatever their rows.

They must tie exactly, and not be told apart by the float noise of two batches, here or where their features were made;
and what is equal is computed once.

Shapes: N rows of a store, n rows asked for, K pairs, U distinct of either.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np


class TitlesAndPhotos(Protocol):
    """What is read of a feature store. image_hashes: of a photo's pixels; "": not known, equal to no other."""

    titles: list[str]
    image_hashes: list[str]


@dataclass(frozen=True)
class Canonical:
    """For each row of a store the first row with its title (text_N) and with its photo (image_N), int64."""

    text_N: np.ndarray
    image_N: np.ndarray

    @classmethod
    def of(cls, store: TitlesAndPhotos) -> Self:
        """Of all rows of a store."""
        photos = (known or row for row, known in enumerate(store.image_hashes))
        return cls(_first_rows(store.titles), _first_rows(photos))

    def texts(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The distinct titles of ``rows``: rows that have them, row_U, and which of them each row has, place_n."""
        return _distinct(self.text_N[rows])

    def images(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The distinct photos of ``rows``, as `texts`."""
        return _distinct(self.image_N[rows])

    def pairs(self, text_rows: np.ndarray, image_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The distinct pairs of a title and a photo: rows that have them, text_U and image_U, and which of them each of
        the K pairs is, place_K: scores of the distinct ones are those of all by ``score_U[place_K]``."""
        count = len(self.text_N)
        key_U, place_K = _distinct(self.text_N[text_rows] * count + self.image_N[image_rows])
        text_U, image_U = np.divmod(key_U, count)
        return text_U, image_U, place_K


def _distinct(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.unique(values, return_inverse=True)


def _first_rows(values: Iterable[Hashable]) -> np.ndarray:
    """For each row the first with its value, int64 (N,)."""
    first: dict[Hashable, int] = {}
    return np.array([first.setdefault(value, row) for row, value in enumerate(values)], dtype=np.int64)
