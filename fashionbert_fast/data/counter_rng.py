"""Random numbers that are a function of what they are for, not of who draws them or when.

A number is the SplitMix64 finaliser (Steele, Lea & Flood 2014) chained over (seed, stream, epoch, sample, position), so
any worker of any rank, in any order, draws the same masks, negatives and order for the same sample. Vectorised.
"""

from __future__ import annotations

from enum import IntEnum, unique

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


@unique
class Stream(IntEnum):
    """What a number is drawn for; streams are independent of one another."""

    PAIRING = 1
    ORDER = 2
    NEGATIVE = 3
    PARTNER = 4
    WORD_CHOICE = 5
    TOKEN_ACTION = 6
    TOKEN_REPLACEMENT = 7
    PATCH_CHOICE = 8
    WORD_SHIFT = 10
    TWINS = 11
    SINGLES = 12
    DROPOUT = 13
    QUERY = 14
    VIEW = 15
    CONTRASTIVE_ORDER = 16
    MIRROR = 17


def splitmix64(x: np.ndarray) -> np.ndarray:
    """uint64 -> uint64, one-to-one and as good as random: what SplitMix64 gives in the state ``x``."""
    x = x + _GAMMA
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def random_bits(seed: int, stream: Stream, epoch: int, *counters: np.ndarray | int) -> np.ndarray:
    """uint64 array: one number for each element of the broadcast ``counters``. Different numbers of the last counter
    give different bits, all else being equal: every step of the chain is one-to-one."""
    with np.errstate(over="ignore"):
        state = splitmix64(np.asarray(seed % 2**64, dtype=np.uint64))
        for value in (int(stream), epoch, *counters):
            state = splitmix64((state ^ np.asarray(value).astype(np.uint64)) * _GAMMA)
    return state


def uniform(seed: int, stream: Stream, epoch: int, *counters: np.ndarray | int) -> np.ndarray:
    """float64 array in [0, 1): see `random_bits`."""
    return (random_bits(seed, stream, epoch, *counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53
