"""The scoreboard of queries: every seed must meet the aim."""

from __future__ import annotations

import pytest

from benchmarks.measure import Row
from benchmarks.services import queries


def found(**recalls: float) -> dict[str, dict]:
    names = {"start": queries.START, "control": queries.CONTROL, "ours": queries.OURS}
    return {
        names[name]: {"query_to_item": {"R@10": value, "MRR": 0.1}, "chance": {"R@10": 0.05}}
        for name, value in recalls.items()
    }


def test_every_seed_must_meet_the_aim():
    seeds = {0: found(start=0.1, control=0.1, ours=0.4), 1: found(start=0.1, control=0.3, ours=0.4)}
    start, control = (row for row in queries.rows(seeds, "some steps") if isinstance(row, Row))
    assert (start.peer, start.value, start.peer_value, start.met) == (queries.PEERS["run"], 0.4, 0.1, True)
    assert start.ratio == pytest.approx(4) and not control.met and control.spread == pytest.approx([4 / 3, 4])
    assert len(queries.rows(seeds, "some steps")) == 2 + 2 * 3 * 2
    nothing = queries.rows({0: found(start=0.0, control=0.01, ours=0.08)}, "some steps")  # below chance
    assert nothing[0].ratio == pytest.approx(1.6) and nothing[0].peer_value == 0 and not nothing[0].met


@pytest.mark.slow
def test_a_seed_is_measured(tmp_path):
    result = queries.measure_seed(tmp_path, 0, 1320, 4, 2)
    assert result.keys() == {queries.START, queries.CONTROL, queries.OURS}
    assert len({of["query_to_item"]["MRR"] for of in result.values()}) == 3  # each its own model
