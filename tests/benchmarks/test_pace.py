"""The guard of speed pairs what both trees measured, in the right direction."""

from __future__ import annotations

import json

import pytest

from benchmarks import pace


def _rounds(key, ours, theirs):
    return [({key: a}, {key: b}) for a, b in zip(ours, theirs, strict=True)]


@pytest.mark.parametrize(
    "unit, ours, theirs", [("us", [50, 40, 60], [100, 100, 90]), ("samples/s", [8, 9, 10], [4, 4, 5])]
)
def test_above_one_is_faster_whatever_the_unit(unit, ours, theirs):
    (row,) = pace.rows_of(_rounds(("kernel", unit), ours, theirs), "commit abc")
    assert row.ratio == 2.0 and row.met and row.case == "kernel" and row.peer == "commit abc"
    assert row.spread[0] <= row.ratio < row.spread[1]


def test_what_is_slower_is_not_met_and_what_one_tree_lacks_is_left_out():
    rounds = [({("a", "us"): 110.0, ("new", "us"): 1.0}, {("a", "us"): 100.0, ("old", "us"): 1.0})]
    (row,) = pace.rows_of(rounds, "commit abc")
    assert row.case == "a" and not row.met


def test_parts_run_in_turn_and_the_older_trees_self_rows_are_no_figures(monkeypatch, tmp_path):
    order = []

    def run(command, cwd, env, **_):
        order.append("ours" if cwd == pace.ROOT else "theirs")
        assert env["PYTHONPATH"] == str(cwd)
        value = 1.0 if cwd == pace.ROOT else 3.0
        rows = [{"case": "k", "unit": "us", "value": v, "peer": p} for v, p in ((value, "a"), (2 * value, "b"))]
        rows.append({"case": "peak", "unit": "MiB", "value": 1.0, "peer": "itself"})
        with open(command[command.index("--json") + 1], "w") as file:
            json.dump({"rows": rows}, file)
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(pace.subprocess, "run", run)
    (row,) = pace.compare(tmp_path, ["patch_kld"], 3, "commit abc", lambda *_: None)
    assert (row.value, row.peer_value, row.ratio) == (1.5, 4.5, 3.0)
    assert order == ["theirs", "ours", "ours", "theirs", "theirs", "ours"]


def test_an_unknown_commit_is_one_line(capsys):
    assert pace.main(["0000000"]) == 2
    assert "no such commit" in capsys.readouterr().err
