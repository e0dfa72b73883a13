"""Which title meets which image, and in what order: functions of seed, epoch and product.

Products of one group (a category) are paired up; the two of a pair stand next to each other in the epoch's order, at
even places, so a negative takes the image of its neighbour, which the batch already holds: an index, not a second read.
Twins (views of one product, rows of one title or one photo) are never each other's negatives. A product that finds no
pair, alone in an odd group or among twins, is a single: its negative is drawn from its group or, where that has only
its twins, from all products, and is read as a second image. Two singles share a pair's place, so all are used alike.

Two ways of making samples of a pair (a, b):

- ``coin``: each product once an epoch, with its own image or its partner's, by a coin of its own.
- ``both``: each product twice, (a, a), (a, b), (b, b), (b, a) in a row. Title and image alone then say nothing about
  the label, each being in one match and one mismatch of the same batch: what is left to learn is whether they agree.

Shapes: N products in use, U = N // 2 pairs of places, S samples an epoch (N with coin, 2 N with both).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
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


def no_pairs() -> EpochPlan:
    """A plan without any."""
    nothing = np.empty(0, dtype=np.int64)
    return EpochPlan(nothing, nothing, nothing.astype(bool))


def numbered(values: Iterable[Hashable]) -> np.ndarray:
    """Equal values as equal numbers, int64 (N,)."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.int64)


def draw_views(rows: np.ndarray, views: int, *, seed: int, epoch: int) -> np.ndarray:
    """int64 in [0, views): in which view the photo of each of the store's ``rows`` is seen in an epoch."""
    return (uniform(seed, Stream.VIEW, epoch, rows) * views).astype(np.int64)


def plan_epoch(
    rows: np.ndarray, groups: np.ndarray, twins: np.ndarray, *, seed: int, epoch: int, pairs: str = "coin",
    negative_rate: float = 0.5,
) -> EpochPlan:  # fmt: skip
    """The epoch's pairs in order.

    Args:
        rows: (N,) int64 store rows in use. groups: (N,) int, what a negative should share (a category's number; all
            equal: any product). twins: (N,) int, what a negative must not share. pairs: ``coin`` or ``both``.
        negative_rate: of ``coin``, the probability of a negative.

    A product that all others are twins of has no negative: it is a match each time.
    """
    # Bits of different numbers differ (`random_bits`), so twins lie side by side in their group, and so do groups.
    order = np.lexsort((
        random_bits(seed, Stream.PAIRING, epoch, rows), random_bits(seed, Stream.TWINS, epoch, twins), groups
    ))  # fmt: skip
    rows, groups, twins = rows[order], groups[order], twins[order]
    first, second = _pairs(groups, twins)
    single = np.ones(len(rows), dtype=bool)
    single[first] = single[second] = False
    partner = np.empty(len(rows), dtype=np.int64)
    partner[first], partner[second] = second, first
    partner[single] = _drawn_partners(rows, groups, twins, np.flatnonzero(single), seed, epoch)
    places = _places(rows, first, second, single, seed, epoch)
    rows, partner = rows[places], rows[partner][places]
    if pairs == "both":
        text_rows, image_rows = np.repeat(rows, 2), np.stack([rows, partner], axis=1).ravel()
        return EpochPlan(text_rows, image_rows, text_rows == image_rows)
    negative = uniform(seed, Stream.NEGATIVE, epoch, rows) < negative_rate
    image_rows = np.where(negative, partner, rows)
    return EpochPlan(rows, image_rows, rows == image_rows)


def _blocks(*labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Start and end, both (N,), of each element's run of equal labels."""
    changes = np.zeros(len(labels[0]), dtype=bool)
    for label in labels:
        changes[1:] |= label[1:] != label[:-1]
    starts = np.flatnonzero(np.append(True, changes[1:]))
    sizes = np.diff(np.append(starts, len(changes)))
    return np.repeat(starts, sizes), np.repeat(starts + sizes, sizes)


def _pairs(groups: np.ndarray, twins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As many pairs within groups as there can be without twins: indices of their first and second products.

    In a group of n, product i meets product i + h. With h = n / 2 all are paired, and where no run of twins is longer
    than h, no two twins are h apart; so h is the longest run where that is longer.
    """
    start, end = _blocks(groups)
    twin_start, twin_end = _blocks(groups, twins)
    heads = np.flatnonzero(start == np.arange(len(start)))
    longest = np.repeat(np.maximum.reduceat(twin_end - twin_start, heads), (end - start)[heads])
    apart = np.maximum((end - start + 1) // 2, longest)
    first = np.flatnonzero(np.arange(len(start)) + apart < end)
    return first, first + apart[first]


def _drawn_partners(
    rows: np.ndarray, groups: np.ndarray, twins: np.ndarray, single: np.ndarray, seed: int, epoch: int
) -> np.ndarray:
    """For each index of ``single`` one drawn from its group, or from all where its group has only twins of it; the
    index itself where all products are its twins."""
    bits = random_bits(seed, Stream.PARTNER, epoch, rows[single])
    start, end = (block[single] for block in _blocks(groups))
    twin_start, twin_end = (block[single] for block in _blocks(groups, twins))
    partner = _outside(start, end, twin_start, twin_end, bits)
    lonely = np.flatnonzero(partner < 0)
    if len(lonely):
        by_twin = np.argsort(twins, kind="stable")
        position = np.empty_like(by_twin)
        position[by_twin] = np.arange(len(by_twin))
        chosen = position[single[lonely]]
        twin_start, twin_end = (block[chosen] for block in _blocks(twins[by_twin]))
        anyone = _outside(np.zeros_like(chosen), np.full_like(chosen, len(rows)), twin_start, twin_end, bits[lonely])
        partner[lonely] = np.where(anyone < 0, single[lonely], by_twin[anyone])
    return partner


def _outside(
    start: np.ndarray, end: np.ndarray, hole_start: np.ndarray, hole_end: np.ndarray, bits: np.ndarray
) -> np.ndarray:
    """An index in [start, end) and not in the hole within, all equally likely; -1 where there is none."""
    count = (end - start) - (hole_end - hole_start)
    step = (bits % np.maximum(count, 1).astype(np.uint64)).astype(np.int64)
    return np.where(count > 0, start + (hole_end - start + step) % (end - start), -1)


def _places(
    rows: np.ndarray, first: np.ndarray, second: np.ndarray, single: np.ndarray, seed: int, epoch: int
) -> np.ndarray:
    """Indices in the epoch's order: pairs and couples of singles, shuffled, each at an even place.

    Of an odd number, one product of all, drawn anew each epoch, stands last; its partner is a single then.
    """
    key = random_bits(seed, Stream.SINGLES, epoch, rows)
    last = np.empty(0, dtype=np.int64)
    if len(rows) % 2:
        last = np.argmin(key)[None]  # pyright: ignore[reportIndexIssue]  # a number of NumPy's can be lengthened
        broken = (first == last) | (second == last)
        single = single.copy()
        single[first[broken]] = single[second[broken]] = True
        single[last] = False
        first, second = first[~broken], second[~broken]
    singles = np.flatnonzero(single)
    couples_U2 = singles[np.argsort(key[singles])].reshape(-1, 2)
    units_U2 = np.concatenate([np.stack([first, second], axis=1), couples_U2])
    order_U = np.argsort(random_bits(seed, Stream.ORDER, epoch, rows[units_U2[:, 0]]))
    return np.append(units_U2[order_U].ravel(), last)
