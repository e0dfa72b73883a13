"""docs/measurements.md is what the rows say, and the README's figures are among them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import measurements

ROOT = Path(__file__).parent.parent.parent


def test_the_page_is_what_the_rows_say():
    assert measurements.PAGE.read_text() == measurements.page(), "run make results"


def test_the_readme_has_the_figures_of_the_rows(monkeypatch):
    assert measurements.README.read_text() == measurements.readme(), "run make results"
    read = measurements._read()
    row = measurements.find(
        read["step_cpu.json"]["rows"], "base, Fashion-Gen-like titles, 32 a batch", "(c) HF + SDPA + torch.compile"
    )
    row["ratio"] = 123.4
    assert "| than the same under torch.compile | 123.4 |" in measurements.measured(read)
    row["peer"] = "gone"
    with pytest.raises(ValueError, match=r"'\(c\) HF"):
        measurements.measured(read)


def test_a_missed_aim_says_so():
    row = {"case": "x", "peer": "y", "ratio": 0.9, "spread": [0.8, 1.0], "target": 1.0, "unit": "us", "met": False}
    assert measurements.table([row]).endswith("\n| x | y | 0.90 (0.80 to 1.00) | 1.00 | missed |")
    assert measurements.table([row | {"met": True, "unit": "MiB"}]).endswith(
        "| x, peak memory | y | 0.90 (0.80 to 1.00) | 1.00 |  |"
    )


def test_survivors_are_named():
    rows = [{"proof": "a", "met": True, "file": "f"}, {"proof": "b", "met": False, "file": "f"}]
    assert measurements.mutants(rows) == "1 of 2 noticed. Not noticed: b."


def test_the_readme_is_short_and_its_links_and_paths_are_there():
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 120
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    paths = re.findall(r"`((?:fashionbert_fast|docs|configs|csrc|benchmarks|tests|examples)/[\w./]+)`", text)
    assert len(links) > 5
    for name in links + paths:
        assert (ROOT / name).exists(), name
