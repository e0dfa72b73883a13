"""The bitwise guard sees any bit, any missing number, any other type; what it cannot compare it says."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import same
from benchmarks.same import INDICES, RATES, RUNS, compare, differences, main


class State:
    def __init__(self, step: int) -> None:
        self.step = step


NESTED = {"w": torch.tensor([1.0, float("nan")]), "list": [1, (2.0, "x")], "state": State(3), "none": None}


def _changed(path: str):
    value = {"w": NESTED["w"].clone(), "list": [1, (2.0, "x")], "state": State(3), "none": None}
    match path:
        case "w":
            value["w"][0] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
        case "type":
            value["w"] = value["w"].double()
        case "list":
            value["list"][1] = (2, "x")  # equal, but another type
        case "state":
            value["state"].step = 4
        case "missing":
            del value["none"]
    return value


def test_equal_values_do_not_differ():
    assert differences(NESTED, _changed("")) == []


@pytest.mark.parametrize(
    ("path", "where"),
    [("w", "/w"), ("type", "/w"), ("list", "/list/1/0"), ("state", "/state/step"), ("missing", "/none")],
)
def test_every_change_is_seen(path, where):
    assert differences(NESTED, _changed(path)) == [where]


def _result(directory, loss=0.5, weight=1.0, samples_per_s=10.0, vectors=b"x"):
    (directory / "store").mkdir(parents=True)
    (directory / "store" / "features.bin").write_bytes(b"x")
    for name in ("vectors", *INDICES, "exported"):
        (directory / name).mkdir()
        (directory / name / "some.npy").write_bytes(vectors)
    for name in RUNS:
        model = directory / name / "checkpoints" / "step-00000020" / "model"
        model.mkdir(parents=True)
        record = {"step": 1, "loss": loss} | dict.fromkeys(RATES, samples_per_s)
        (directory / name / "metrics.jsonl").write_text(json.dumps(record) + "\n")
        (directory / name / "evaluation.json").write_text(json.dumps({"R@1": 0.5, "data": str(directory)}))
        save_file({"w": torch.full((2,), weight)}, model / "model.safetensors")
    return directory


@pytest.mark.parametrize(
    ("changes", "what"),
    [({}, ""), ({"samples_per_s": 99.0}, ""), ({"loss": 0.5000001}, "steps"), ({"weight": 1.0000001}, "checkpoints")],
)
def test_a_run_that_differs_is_named_and_its_speed_is_not(changes, what, tmp_path, monkeypatch):
    def as_theirs(run, store, path):
        path.write_text((run / "evaluation.json").read_text())

    monkeypatch.setattr(same, "evaluate", as_theirs)
    ours, theirs = _result(tmp_path / "ours"), _result(tmp_path / "theirs", **changes)
    found = {name: places for name, places in compare(ours, theirs) if places}
    assert len(found) == (len(RUNS) if what else 0) and all(name.endswith(what) for name in found)


def test_vectors_indices_and_exports_that_differ_or_are_missing_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(same, "evaluate", lambda run, store, path: path.write_text("{}"))
    monkeypatch.setattr(same, "RUNS", {})
    ours, theirs = _result(tmp_path / "ours"), _result(tmp_path / "theirs", vectors=b"y")
    (theirs / "exported" / "some.npy").unlink()
    assert {name for name, places in compare(ours, theirs) if places} == {"vectors", *INDICES, "exported"}


def test_an_unknown_commit_is_refused(capsys):
    assert main(["no-such-commit"]) == 2 and "no-such-commit" in capsys.readouterr().err
    assert main([]) == 2 and "COMMIT" in capsys.readouterr().err
