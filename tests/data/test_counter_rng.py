"""Numbers by what they are for: the published generator's, and the same for ever."""

from __future__ import annotations

import numpy as np

from fashionbert_fast.data.counter_rng import Stream, random_bits, splitmix64

GAMMA = np.uint64(0x9E3779B97F4A7C15)


def test_splitmix64_gives_its_published_sequence():
    """Of the seed 1234567, as the tests of other implementations list it."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    states = np.uint64(1234567) + GAMMA * np.arange(4, dtype=np.uint64)
    assert splitmix64(states).tolist() == published


def test_what_is_drawn_stays_what_it_was():
    """Orders of epochs, masks and negatives of every run so far hang on these."""
    assert random_bits(7, Stream.ORDER, 3, np.arange(3), 5).tolist() == [
        4306405933743305681, 8886873603292759591, 413404871723963014,
    ]  # fmt: skip
