"""The tables of docs/quality.md, and its picture, from what `python -m benchmarks.quality` found.

What stands before the first marker is written by hand: what to use when.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.measurements import BEGIN, END, ROOT
from benchmarks.plot import COLOURS
from fashionbert_fast.errors import InputError
from fashionbert_fast.files import write_text

PAGE, PICTURE = ROOT / "docs" / "quality.md", ROOT / "docs" / "images" / "quality.png"
SHOWN = {"R@1": COLOURS[0], "R@10": COLOURS[1]}
OF_ONE = ("match", "shortlist", "sum", "similarity")  # scores of one FashionBERT


def write(result: dict[str, Any], page: Path = PAGE, picture: Path = PICTURE) -> None:
    """Put the tables between the markers of ``page``, and draw ``picture``. InputError where there are no markers."""
    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        lines = f"{BEGIN.strip()} and {END.strip()}"
        raise InputError(f"{page}: has not the lines {lines} once each, in this order; put them in")
    write_text(page, filled(text, result))
    plot(result, picture)


def filled(text: str, result: dict[str, Any]) -> str:
    """The page with the tables of ``result``, and its picture."""
    picture = f"\n![R@1 and R@10 of every system](images/{PICTURE.name})\n"
    return text[: text.index(BEGIN)] + BEGIN + tables(result) + picture + text[text.index(END) :]


def tables(result: dict[str, Any]) -> str:
    """Where it was measured, then a store's systems and the scores of its FashionBERTs, store after store."""
    settings = result["settings"]
    parts = [
        f"{settings['queries']:,} queries of the test split in each direction, {settings['candidates']} candidates "
        f"each, means of the seeds; {result['device']}, {result['machine']['cores']} cores, commit "
        f"`{result['commit']}`."
    ]
    for store, systems in groupby(result["systems"], key=lambda of: of["store"]):
        listed, tests = list(systems), [test for test in result["tests"] if test["store"] == store]
        parts += [f"### {store}", _systems(listed, tests), _scores(listed, tests)]
    missing = [proof["proof"] for proof in result["failed"]]
    if missing:
        parts.append("Missing: " + ", ".join(missing) + ".")
    return "\n\n".join(part for part in parts if part) + "\n"


def _systems(systems: list[dict[str, Any]], tests: list[dict[str, Any]]) -> str:
    lines = ["| system | seeds | by | R@1 | R@10 | alignment accuracy | R@1 beside the best baseline | p | minutes |",
             "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for of in systems:
        test = find(tests, of["system"], "R@1", own=False)
        beside, p = ("", "") if test is None else _difference(test)
        found = of["scores"][of["score"]]
        accuracy = _with_ends(found["alignment_accuracy"], found["intervals"]["alignment_accuracy"])
        minutes = ("at least " if of["minutes_at_least"] else "") + f"{of['minutes']:.1f}"
        name = of["system"] + (f" (as {of['same_as']})" if of["same_as"] else "")
        cells = [
            name, str(of["seeds"]), of["score"], _recall(found, "R@1"), _recall(found, "R@10"), accuracy, beside, p,
            minutes,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _scores(systems: list[dict[str, Any]], tests: list[dict[str, Any]]) -> str:
    """R@1 of each FashionBERT by each of its scores, with the test against similarity."""
    ours = [of for of in systems if "match" in of["scores"]]
    if not ours:
        return ""
    lines = [f"| R@1 by | {' | '.join(OF_ONE)} |", "| --- |" + " --- |" * len(OF_ONE)]
    for of in ours:
        cells = []
        for name in OF_ONE:
            test = find(tests, of["system"], "R@1", own=True, score=name)
            beside = "" if test is None else "; {}, p {}".format(*_difference(test))
            cells.append(f"{of['scores'][name]['both']['R@1']:.3f}{beside}")
        lines.append(f"| {of['system']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def find(tests: list[dict], system: str, metric: str, *, own: bool, score: str | None = None) -> dict | None:
    """The test of that system and figure: against itself by another score (``own``), or against another system."""
    found = [
        test for test in tests
        if (test["system"], test["metric"]) == (system, metric) and (test["against"] == system) == own
        and score in (None, test["score"])
    ]  # fmt: skip
    return found[0] if found else None


def _recall(found: dict[str, Any], figure: str) -> str:
    return _with_ends(found["both"][figure], found["intervals"]["both"][figure])


def _with_ends(value: float, ends: list[float]) -> str:
    return f"{value:.3f} ({ends[0]:.3f} to {ends[1]:.3f})"


def _difference(test: dict[str, Any]) -> tuple[str, str]:
    low, high = test["interval"]
    p = f"{test['p']:.3f}" if test["p"] >= 0.0005 else "< 0.001"
    return f"{test['difference']:+.3f} ({low:+.3f} to {high:+.3f})", p


def plot(result: dict[str, Any], path: Path) -> None:
    """R@1 and R@10 of every system as bars with 95% intervals, a panel a store. OSError where it cannot be written."""
    stores = {name: list(of) for name, of in groupby(result["systems"], key=lambda of: of["store"])}
    heights = [len(of) + 2 for of in stores.values()]
    figure, axes = plt.subplots(
        len(stores), 1, figsize=(10, 1 + 0.32 * sum(heights)), layout="constrained", squeeze=False, sharex=True,
        height_ratios=heights,
    )  # fmt: skip
    figure.suptitle(f"test products found among {result['settings']['candidates']}, mean of both directions; "
                    f"{result['device']}, commit {result['commit']}", fontsize=9, parse_math=False)  # fmt: skip
    for axis, (store, systems) in zip(axes[:, 0], stores.items(), strict=True):
        place = np.arange(len(systems))
        for offset, (name, colour) in zip((-0.2, 0.2), SHOWN.items(), strict=True):
            found = [of["scores"][of["score"]] for of in systems]
            value = np.array([of["both"][name] for of in found])
            ends = np.array([of["intervals"]["both"][name] for of in found]).T
            axis.barh(place + offset, value, height=0.38, color=colour, label=name, xerr=abs(ends - value),
                      error_kw={"elinewidth": 0.8, "ecolor": "#333333"})  # fmt: skip
        labels = [f"{of['system']} by {of['score']}" if of["kind"] == "fashionbert" else of["system"] for of in systems]
        axis.set_yticks(place, labels, fontsize=8, parse_math=False)
        axis.set_ylim(len(systems) - 0.4, -0.6)
        axis.set_title(store, loc="left", fontsize=10, parse_math=False)
        axis.grid(axis="x", alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    axes[-1, 0].set_xlim(0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
