"""The GPU suite says so where there is no GPU, and otherwise keeps what it measured when a part fails."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import gpu_suite
from benchmarks.measure import Row


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_is_an_input_error(tmp_path, capsys):
    assert gpu_suite.main(["--json", str(tmp_path / "x.json")]) == 2
    assert "no CUDA device" in capsys.readouterr().err and not (tmp_path / "x.json").exists()


def test_a_failing_part_costs_no_other(tmp_path, monkeypatch):
    row = Row("case", "peer", 1.0, 2.0, "us", 2.0, 1.5, True, [1.9, 2.1])

    def broken(device):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_suite, "measurements", lambda quick: {"good": lambda device: [row], "bad": broken})
    monkeypatch.setattr(gpu_suite, "proofs", lambda: [{"proof": "tests", "k": 3, "n": 3, "met": True}])
    monkeypatch.setattr("benchmarks.measure.device_name", lambda device: "a GPU")
    assert gpu_suite.main(["--json", str(tmp_path / "x.json")]) == 1
    written = json.loads((tmp_path / "x.json").read_text())
    assert [r["case"] for r in written["rows"]] == ["case"]
    assert [proof["met"] for proof in written["proofs"]] == [True, False] and "out of memory" in str(written["proofs"])


def test_parts_cover_the_operators_and_both_sizes():
    names = set(gpu_suite.measurements(True))
    assert {"patch_kld", "packed_attention", "step base", "step large"} <= names
