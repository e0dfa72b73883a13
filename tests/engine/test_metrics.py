"""metrics.jsonl: strict JSON whatever a run comes to, and no step twice where it is taken up again."""

from __future__ import annotations

import json

import pytest

from fashionbert_fast.engine.metrics import MetricsWriter, read_metrics

RECORD = {"step": 1, "loss": 2.0, "losses": {"mlm": 1.0, "tia": 0.5, "mpm": 0.5}, "grad_norm": None}


def test_what_json_does_not_have_becomes_null(tmp_path):
    writer = MetricsWriter(tmp_path, 0)
    writer.write(RECORD | {"loss": float("nan"), "losses": {"mlm": float("inf"), "tia": float("-inf"), "mpm": 0.5}})
    writer.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    record = json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert (record["loss"], record["losses"]) == (None, {"mlm": None, "tia": None, "mpm": 0.5})


def test_a_resumed_run_goes_on_after_its_checkpoint(tmp_path):
    writer = MetricsWriter(tmp_path, 0)
    for step in (2, 4, 6):
        writer.write(RECORD | {"step": step})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # torn by a kill
    writer = MetricsWriter(tmp_path, 4)
    writer.write(RECORD | {"step": 5})
    writer.close()
    assert [record["step"] for record in read_metrics(tmp_path)] == [2, 4, 5]
