"""Progress bars: nothing is cut off where the terminal is narrow, nothing is drawn where there is none."""

from __future__ import annotations

import re

import pytest

from fashionbert_fast.engine.reporting.reporter import _described
from fashionbert_fast.progress import progress, progress_bar

RECORD = {"losses": {"mlm": 10.321, "tia": 0.693, "mpm": 12.345}, "samples_per_s": 1234.5, "skipped": 0}


def lines_of(text: str) -> list[str]:
    """What a terminal shows of ``text`` at its last refresh."""
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.split("\x1b[2K")[-1])
    return [line.strip("\r").rstrip() for line in shown.splitlines() if line.strip()]


@pytest.mark.parametrize("columns", [60, 80, 160])
def test_all_of_a_long_run_fits(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress_bar() as bar:
        clock = {"now": 0.0}
        bar.get_time = lambda: clock["now"]
        task = bar.add_task("pretrain", total=200_000)
        for clock["now"], step in ((36_000.0 - 7.2, 49_990), (36_000.0, 50_000)):  # ten hours gone, of forty
            bar.update(task, completed=step, detail=_described(RECORD, {"alignment_accuracy": 0.987}))
        bar.refresh()
        shown = "\n".join(lines_of(capsys.readouterr().err))
    assert "…" not in shown and max(map(len, shown.splitlines())) <= columns
    words = shown.split()
    for word in ("pretrain", "50000/200000", "10:00:00", "30:00:00"):
        assert word in shown.splitlines()[0], shown
    assert " ".join(words).endswith("mlm 10.321 tia 0.693 mpm 12.345 held out 0.987 1234 pairs/s")


def test_nothing_is_drawn_off_a_terminal(capsys):
    assert list(progress(range(3), 3, "counting")) == [0, 1, 2]
    assert capsys.readouterr().err == ""
