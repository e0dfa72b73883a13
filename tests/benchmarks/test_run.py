"""`fashionbert bench`: what --only leaves, the JSON and the picture beside it."""

from __future__ import annotations

import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from benchmarks.measure import Row, shown
from benchmarks.run import _print
from benchmarks.steps.bench_step import _summary
from fashionbert_fast.cli import main


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.5, "us", "0.5 us"), (999.4, "us", "999 us"), (999.6, "us", "1 ms"), (2.186e4, "us", "21.9 ms"),
     (3.2e6, "us", "3.2 s"), (4.5e9, "us", "4,500 s"), (15.832, "samples/s", "15.8 samples/s"),
     (2.186e4, "tokens/s", "21,860 tokens/s"), (0.0, "MiB", "0 MiB")],
)  # fmt: skip
def test_values_are_shown_in_a_unit_that_fits(value, unit, text):
    assert shown(value, unit) == text


def test_what_has_no_peer_is_not_judged(capsys):
    comparison = SimpleNamespace(seconds=[2.0], memory={}, gpu=False)
    facts = {"useful_flops": 1e12, "gemm_rate": 6e11, "tokens": 84_000.0, "memory": 1.0}
    gemm, tokens = _summary(comparison, facts, "base")
    assert isinstance(gemm, Row) and not isinstance(tokens, Row)
    rows = [asdict(Row("a case", "a peer", 21860.0, 3e6, "us", 137.2, 1.5, True, [130, 140])), asdict(tokens)]
    _print({"device": "a CPU", "commit": "0123456789ab", "rows": rows})
    printed = capsys.readouterr().out
    assert "21.9 ms" in printed and "3 s" in printed and printed.count(" met") == 1
    assert "42,000 tokens/s" in printed and "itself" not in printed


def test_only_the_named_operator_is_measured(tmp_path):
    path = tmp_path / "rows.json"
    assert main(["bench", "solve", "--quick", "--only", "min_norm_weights", "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert result["rows"] and all(row["case"].startswith("min_norm_weights") for row in result["rows"])
    assert path.with_suffix(".png").stat().st_size > 0


def test_an_unknown_measurement_is_refused_by_name(capsys):
    for suite, known in (("ops", "patch_kld"), ("step", "zero-1")):
        assert main(["bench", suite, "--only", "nonsense"]) == 2
        error = capsys.readouterr().err
        assert "--only nonsense" in error and known in error


def test_what_the_contrastive_loss_costs_is_measured(tmp_path):
    path = tmp_path / "rows.json"
    assert main(["bench", "contrastive", "--quick", "--json", str(path)]) == 0
    both, coin = json.loads(path.read_text())["rows"]
    assert "32 photos alone" in both["case"] and "64 photos alone" in coin["case"]
