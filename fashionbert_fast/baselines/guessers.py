"""Guessers: what an evaluator must give those that know nothing, or nothing but the category.

    random    R@k is k / candidates
    category  own and other candidates of one sub-category tie: 0, as ties count against the scorer
    text      a title's number is one for all photos: 0 from text to image; chance from image to text
    photo     the other way round

Shapes: n rows asked for, K pairs.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Self

import numpy as np
import torch

from fashionbert_fast.baselines.fitting import Budget, Validation
from fashionbert_fast.baselines.inputs import State
from fashionbert_fast.baselines.system import Baseline
from fashionbert_fast.data.counter_rng import splitmix64
from fashionbert_fast.features.store import FeatureStore


def _bits(keys: list[str], seed: int) -> np.ndarray:
    """uint64 (n,): of each key its own."""
    digests = (hashlib.blake2b(f"{seed}\x1f{key}".encode(), digest_size=8).digest() for key in keys)
    return np.array([int.from_bytes(digest, "little") for digest in digests], dtype=np.uint64)


def _uniform(bits: np.ndarray) -> torch.Tensor:
    """float64 in [0, 1)."""
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) / 2**53)


class _Guesser(Baseline):
    def __init__(self, *, seed: int = 0) -> None:
        super().__init__(seed=seed)

    @classmethod
    def fit(
        cls, store: FeatureStore, rows: np.ndarray, validation: Validation, *, seed: int, budget: Budget,
        core: str | Path,
    ) -> Self:  # fmt: skip
        """There is nothing to fit."""
        return cls(seed=seed).open(store)

    def title_bits(self, rows: np.ndarray) -> np.ndarray:
        return _bits([self.store.titles[row] for row in rows], self.options["seed"])

    def photo_bits(self, rows: np.ndarray) -> np.ndarray:
        known = [self.store.image_hashes[row] or self.store.ids[row] for row in rows]
        return _bits(known, self.options["seed"] + 1)

    def titles(self, rows: np.ndarray) -> State:
        return (torch.from_numpy(self.title_bits(rows).view(np.int64)),)

    def photos(self, rows: np.ndarray) -> State:
        return (torch.from_numpy(self.photo_bits(rows).view(np.int64)),)


class Random(_Guesser):
    """A draw for each pair of a title and a photo, the same whenever it is asked."""

    name = "random"

    def meet(self, titles: State, photos: State) -> torch.Tensor:
        return _uniform(splitmix64(titles[0].numpy().view(np.uint64) ^ photos[0].numpy().view(np.uint64)))


class TextAlone(_Guesser):
    """A number of the title."""

    name = "text"

    def meet(self, titles: State, photos: State) -> torch.Tensor:
        return _uniform(titles[0].numpy().view(np.uint64))


class PhotoAlone(_Guesser):
    """A number of the photo."""

    name = "photo"

    def meet(self, titles: State, photos: State) -> torch.Tensor:
        return _uniform(photos[0].numpy().view(np.uint64))


class Category(_Guesser):
    """1 where title and photo are of one category and sub-category, as the store has them."""

    name = "category"

    def _numbers(self, rows: np.ndarray) -> State:
        names = [f"{self.store.categories[row]}\x1f{self.store.subcategories[row]}" for row in rows]
        return (torch.from_numpy(_bits(names, 0).view(np.int64)),)

    titles = photos = _numbers

    def meet(self, titles: State, photos: State) -> torch.Tensor:
        return (titles[0] == photos[0]).double()
