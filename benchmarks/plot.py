"""The benchmark table as a picture: how many times better than each peer, on a log scale, beside each row's target.

python -m benchmarks.plot ROWS.json PICTURE.png     # `fashionbert bench --json` draws its own
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

COLOURS = ("#4269d0", "#efb118", "#3ca951", "#ff725c", "#a463f2", "#6cc5b0", "#ff8ab7", "#9c6b4e", "#97bbf5", "#9498a0")
MISSED = "#c1121f"
ROW_INCHES, HEAD_INCHES = 0.24, 1.5
LEAST, MOST = 1e-3, 1e6  # a memory ratio may be 0 or huge; beyond these a bar only says "off the scale"


def _within(values) -> np.ndarray:
    return np.clip(np.asarray(values, dtype=np.float64), LEAST, MOST)


def plot_rows(result: dict, path: Path) -> None:
    """Write ``path`` (PNG): a horizontal bar a row in the table's order, one colour a peer, whiskers p20 to p80.

    A black tick is the row's target, the grey line 1: as good as the peer. The figure grows with the rows, so that
    labels stay the same size. Rows that have no peer (figures by themselves, scoreboards) are left out.

    Args:
        result: the contract's benchmark JSON. OSError where ``path`` cannot be written.
    """
    rows = [row for row in result["rows"] if "peer" in row]
    peers = list(dict.fromkeys(row["peer"] for row in rows))
    colour_of = {peer: COLOURS[i % len(COLOURS)] for i, peer in enumerate(peers)}
    height = HEAD_INCHES + ROW_INCHES * max(2, len(rows) + -(-len(peers) // 3))
    figure, axis = plt.subplots(figsize=(14, height), layout="constrained")
    _bars(axis, rows, colour_of)
    _axes(axis, rows)
    title = f"times better than each peer\n{result['device']}, commit {result['commit']}"
    axis.set_title(title, loc="left", fontsize=10, parse_math=False)
    handles = [Patch(color=colour, label=peer) for peer, colour in colour_of.items()]
    handles += [Line2D([], [], color="black", marker="|", markersize=10, linestyle="", label="target")]
    handles += [Line2D([], [], color="#555555", linewidth=1, label="p20 to p80")]
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _bars(axis: plt.Axes, rows: list[dict], colour_of: dict[str, str]) -> None:
    """Bars from 1 to the ratio: to the right is better, on a log scale twice as good as far as half as good."""
    ratio, target = (_within([row[key] for row in rows]) for key in ("ratio", "target"))
    low, high = _within([row["spread"] for row in rows]).reshape(-1, 2).T
    place = np.arange(len(rows))
    axis.barh(place, ratio - 1, left=1, height=0.7, color=[colour_of[row["peer"]] for row in rows], alpha=0.85)
    axis.hlines(place, low, high, color="#555555", linewidth=1)
    axis.vlines(target, place - 0.45, place + 0.45, color="black", linewidth=2)
    right_end = np.maximum.reduce([ratio, high, target, np.ones_like(ratio)])
    for row, y, x in zip(rows, place, right_end, strict=True):
        text, colour = (f"{row['ratio']:.2f}x", "#333333") if row["met"] else (f"{row['ratio']:.2f}x missed", MISSED)
        axis.annotate(
            text, (x, y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8, color=colour
        )  # fmt: skip


def _labels(rows: list[dict]) -> list[str]:
    """A row's case, with its peer where rows share the case: no two bars have one name."""
    cases = Counter(row["case"] for row in rows)
    return [f"{row['case']}: {row['peer']}" if cases[row["case"]] > 1 else row["case"] for row in rows]


def _axes(axis: plt.Axes, rows: list[dict]) -> None:
    axis.set_xscale("log")
    shown = np.concatenate([[0.8, 1.25], *(_within([r["ratio"], r["target"], *r["spread"]]) for r in rows)])
    room = (shown.max() / shown.min()) ** 0.12  # for the numbers at the bars' ends
    axis.set_xlim(shown.min() / room**0.25, shown.max() * room)
    axis.set_yticks(range(len(rows)), _labels(rows), fontsize=8, parse_math=False)
    axis.set_ylim(len(rows) - 0.4, -0.6)  # the first row on top
    axis.axvline(1, color="grey", linewidth=1)
    narrow = shown.max() / shown.min() < 100
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="x", labelsize=8, top=True, labeltop=True)  # a long picture is read from either end
    axis.grid(axis="x", alpha=0.25)
    axis.spines[["right"]].set_visible(False)


if __name__ == "__main__":
    plot_rows(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
