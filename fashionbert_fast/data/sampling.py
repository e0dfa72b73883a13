"""Which title meets which image, and in what order: functions of seed, epoch and product.

Products of one category are paired up; the two of a pair stand next to each other in the epoch's order, so a negative
takes the image of its neighbour, which the batch already holds: an index, not a second read. Two ways of making samples
of a pair (a, b):

- ``coin``: each product once an epoch, with its own image or its partner's, by a coin of its own.
- ``both``: each product twice, (a, a), (a, b), (b, b), (b, a) in a row. Title and image alone then say nothing about
  the label, each being in one match and one mismatch of the same batch: what is left to learn is whether they agree.

Shapes: N products in use, S samples an epoch (N with coin, 2 N with both).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fashionbert_fast.data.counter_rng import Stream, random_bits, uniform

WAYS = ("coin", "both")


@dataclass(frozen=True)
class EpochPlan:
    """An epoch's S samples in order: ``text_rows`` and ``image_rows`` (S,) int64 store rows, ``is_match`` (S,) bool."""

    text_rows: np.ndarray
    image_rows: np.ndarray
    is_match: np.ndarray


def plan_epoch(
    rows: np.ndarray, groups: np.ndarray, *, seed: int, epoch: int, way: str = "coin", negative_rate: float = 0.5
) -> EpochPlan:
    """The epoch's pairs in order.

    Args:
        rows: (N,) int64 store rows in use. groups: (N,) int, what a negative must share (a category's number; all
            equal: any product). way: ``coin`` or ``both``. negative_rate: of ``coin``, the probability of a negative.

    A product alone in its group takes its negative from any group.
    """
    order = _paired_order(rows, groups, seed, epoch)
    rows, groups = rows[order], groups[order]
    partner = _partners(rows, groups, seed, epoch)
    units = _shuffled_units(rows, groups, seed, epoch)
    rows, partner = rows[units], partner[units]
    if way == "both":
        is_match = np.tile([True, False], len(rows))
        text_rows = np.repeat(rows, 2)
        return EpochPlan(text_rows, np.where(is_match, text_rows, np.repeat(partner, 2)), is_match)
    negative = uniform(seed, Stream.NEGATIVE, epoch, rows) < negative_rate
    negative &= partner != rows  # one single product: nothing to be a negative
    return EpochPlan(rows, np.where(negative, partner, rows), ~negative)


def _paired_order(rows: np.ndarray, groups: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Indices that sort by group, shuffled within each."""
    return np.lexsort((random_bits(seed, Stream.PAIRING, epoch, rows), groups))


def _place_in_group(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For sorted ``groups``: each element's place in its group and the size of that group."""
    _, start, counts = np.unique(groups, return_index=True, return_counts=True)
    return np.arange(len(groups)) - np.repeat(start, counts), np.repeat(counts, counts)


def _partners(rows: np.ndarray, groups: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Each product's partner: its neighbour in the group; of an odd group, the last takes the one before it."""
    place, size = _place_in_group(groups)
    step = np.where(place % 2 == 1, -1, np.where(place + 1 < size, 1, -1))
    index = np.arange(len(rows)) + np.where(size > 1, step, 0)
    alone = np.flatnonzero(size == 1)
    if len(rows) > 1:
        other = random_bits(seed, Stream.PARTNER, epoch, rows[alone]) % np.uint64(len(rows) - 1)
        index[alone] = (alone + 1 + other.astype(np.int64)) % len(rows)
    return rows[index]


def _shuffled_units(rows: np.ndarray, groups: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Indices that shuffle whole pairs; single products follow the pairs, so that pairs keep to even places."""
    place, size = _place_in_group(groups)
    single = (size % 2 == 1) & (place == size - 1)
    first_of_pair = rows[np.arange(len(rows)) - place % 2]
    key = random_bits(seed, Stream.ORDER, epoch, np.where(single, rows, first_of_pair))
    return np.lexsort((place % 2, key, single))
