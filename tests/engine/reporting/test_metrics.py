"""metrics.jsonl: strict JSON whatever a run comes to, and no step twice where it is taken up again."""

from __future__ import annotations

import importlib.util
import json
import resource
import signal
import sys

import pytest

from fashionbert_fast.config import load_config
from fashionbert_fast.engine.checkpointing.resume import prepare_directory
from fashionbert_fast.engine.reporting.metrics import MetricsWriter, read_metrics
from fashionbert_fast.errors import InputError

# Of TensorBoard's thread, on a full disk.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
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


def test_a_full_disk_costs_no_record(tmp_path, capsys):
    """Half a line is taken, then none: each is there, whole and once, when there is room again."""
    writer = MetricsWriter(tmp_path, 0)
    writer.write(RECORD)
    line = (tmp_path / "metrics.jsonl").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (line + line // 2, limits[1]))
    try:
        for step in (2, 3):
            writer.write(RECORD | {"step": step})
        assert (tmp_path / "metrics.jsonl").stat().st_size == line + line // 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [record["step"] for record in read_metrics(tmp_path)] == [1]
    writer.write(RECORD | {"step": 4})
    writer.close()
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3, 4]
    assert "metrics.jsonl: cannot be written" in capsys.readouterr().out


@pytest.mark.parametrize("line", ["5", "[1]", "{}", '{"step": "far"}', "[" * 100_000, "\udcff"])
def test_a_line_that_is_no_record_ends_what_is_read(tmp_path, line):
    text = json.dumps(RECORD) + "\n" + line + "\n" + json.dumps(RECORD) + "\n"
    (tmp_path / "metrics.jsonl").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert read_metrics(tmp_path) == [RECORD]


class _Wandb:
    """What of Weights & Biases is used: what it was told."""

    def __init__(self) -> None:
        self.begun, self.logged, self.finished = [], [], 0

    def init(self, **settings):
        self.begun.append(settings)
        return self

    def log(self, numbers, step):
        self.logged.append((step, numbers))

    def finish(self):
        self.finished += 1


def test_weights_and_biases_are_told_where_asked_and_a_resumed_run_is_the_same_one(tmp_path, monkeypatch):
    told = _Wandb()
    monkeypatch.setitem(sys.modules, "wandb", told)
    config = load_config(None, ["data.store=stores/x", f"train.output={tmp_path}"])
    for first, wandb in ((0, False), (0, True), (1, True)):
        config.train.wandb = wandb
        writer = MetricsWriter(tmp_path, first, config)
        writer.write(RECORD | {"step": first + 1})
        writer.close()
    assert [settings["id"] for settings in told.begun] == [(tmp_path / "wandb-id.txt").read_text().strip()] * 2
    assert told.begun[0]["config"]["train"]["steps"] == config.train.steps
    assert [step for step, _ in told.logged] == [1, 2]
    assert told.logged[0][1] == {"loss": 2.0, "losses/mlm": 1.0, "losses/tia": 0.5, "losses/mpm": 0.5}
    assert told.finished == 2


def test_weights_and_biases_that_are_not_installed_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = load_config(None, ["data.store=stores/x", f"train.output={tmp_path / 'run'}", "train.wandb=true"])
    with pytest.raises(InputError, match=r"^train\.wandb: .*not installed"):
        prepare_directory(config, resume=False)
    assert not (tmp_path / "run").exists()
