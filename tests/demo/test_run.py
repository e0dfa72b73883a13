"""The demo end to end, too short to learn: every file is there and the report can be looked at."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from PIL import Image


def _demo(*arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fashionbert_fast", "demo", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_demo_leaves_figures_and_a_report(tmp_path):
    out = tmp_path / "demo"
    small = ["--products", "1400", "--queries", "12", "train.steps=12", "train.log_every=3",
             "contrastive.first_steps=4"]  # fmt: skip
    done = _demo("--out", str(out), *small)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((out / "evaluation.json").read_text())
    assert (result["protocol"], result["queries"], result["candidates"]) == ("fashionbert", 12, 101)
    assert result["topped_up"] == 0  # every sub-category has 101 held-out products
    for name in ("losses.png", "weights.png", "queries.png"):
        assert Image.open(out / name).size[0] > 300
    report = (out / "report.html").read_text()
    assert report.count("data:image/png;base64,") == 3
    assert f"{100 * result['alignment_accuracy']:.1f}%" in report
    again = _demo("--out", str(out), *small)
    assert again.returncode == 2
    assert "--overwrite" in again.stderr


@pytest.mark.parametrize("field", ["train.micro_batch_size", "contrastive.batch_size"])
def test_too_few_products_are_refused_before_anything_is_written(tmp_path, field):
    done = _demo("--out", str(tmp_path / "demo"), "--products", "1260", f"{field}=240")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and "--products 1260" in line and not (tmp_path / "demo").exists()
    held_out, batch, least = map(int, re.findall(r"(\d+) are held out .* on (\d+); ask for (\d+)", line)[0])
    assert batch == 240 and least == held_out + batch > 1260


def test_demo_does_not_touch_a_directory_that_is_no_demo(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    done = _demo("--out", str(tmp_path), "--overwrite")
    assert done.returncode == 2
    assert "no demo's directory" in done.stderr
    assert (tmp_path / "precious.txt").read_text() == "mine"
