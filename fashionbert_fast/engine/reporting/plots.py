"""Curves of a run as PNG: the three losses, with held-out ones, the task weights, learning rate and throughput."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

LABELS = {
    "mlm": "masked words (MLM)", "tia": "alignment (TIA)", "mpm": "masked patches (MPM)", "itc": "contrastive (ITC)",
}  # fmt: skip
HELD_OUT = {"marker": "o", "markersize": 4, "color": "black"}  # a validation
COLOURS = {"mlm": "#4269d0", "tia": "#ff725c", "mpm": "#3ca951", "itc": "#efb118"}


def _smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Running mean over at most ``window`` past values, those that are not finite left out."""
    finite = np.isfinite(values)
    cumulative, counted = (np.cumsum(np.insert(x, 0, 0.0)) for x in (np.where(finite, values, 0.0), finite))
    start = np.maximum(np.arange(1, len(values) + 1) - window, 0)
    stop = np.arange(1, len(values) + 1)
    return (cumulative[stop] - cumulative[start]) / np.maximum(counted[stop] - counted[start], 1)


def _numbers(records: list[dict], *keys: str) -> np.ndarray:
    values = []
    for record in records:
        for key in keys:
            record = record[key]
        values.append(np.nan if record is None else record)
    return np.asarray(values, dtype=np.float64)


def _style(axis: Axes, title: str) -> None:
    axis.set_title(title, loc="left", fontsize=10)
    axis.set_xlabel("step", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def plot_losses(records: list[dict], path: Path) -> None:
    """A panel a task: raw values faint, their running mean on top; ln 2 marks the alignment's plateau. One more for
    the contrastive loss and for the queries', where there are any.

    Where a run was validated, held-out losses are points over them, and the last panel has the alignment accuracy.
    """
    steps = _numbers(records, "step")
    validated = [record for record in records if "validation" in record]
    curves: dict[str, tuple[str, tuple[str, ...]]] = {
        LABELS[task]: (COLOURS[task], ("losses", task)) for task in records[0]["losses"]
    }
    if "query_loss" in records[0]:
        curves["queries find their items"] = ("#a463f2", ("query_loss",))
    panels = len(curves) + bool(validated)
    figure, axes = plt.subplots(1, panels, figsize=(11 / 3 * panels, 3), constrained_layout=True)
    for axis, (title, (colour, keys)) in zip(axes, curves.items(), strict=False):
        values = _numbers(records, *keys)
        axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        axis.plot(steps, _smooth(values, max(1, len(values) // 25)), color=colour, linewidth=1.6)
        if validated:
            held_out = _numbers(validated, "validation", *keys)
            axis.plot(_numbers(validated, "step"), held_out, linestyle="", label="held out", **HELD_OUT)
        _style(axis, title)
    if validated:
        accuracy = _numbers(validated, "validation", "alignment_accuracy")
        axes[-1].plot(_numbers(validated, "step"), accuracy, linewidth=1, **HELD_OUT)
        axes[-1].axhline(0.5, color="grey", linestyle=":", linewidth=1, label="guessing")
        _style(axes[-1], "held-out alignment accuracy")
        axes[-1].legend(fontsize=8, frameon=False)
        axes[0].legend(fontsize=8, frameon=False)
    axes[1].axhline(np.log(2), color="grey", linestyle=":", linewidth=1, label="ln 2: guessing")
    axes[1].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_weights(records: list[dict], path: Path) -> None:
    """A panel a task, each on its own scale: the factor its loss or gradient had."""
    tasks = list(records[0]["weights"])
    figure, axes = plt.subplots(1, len(tasks), figsize=(11 / 3 * len(tasks), 2.6), constrained_layout=True)
    for axis, task in zip(axes, tasks, strict=True):
        axis.plot(_numbers(records, "step"), _numbers(records, "weights", task), color=COLOURS[task], linewidth=1.2)
        axis.yaxis.get_major_formatter().set_useOffset(False)
        _style(axis, f"weight of {LABELS[task]}")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_progress(records: list[dict], path: Path) -> None:
    """Learning rate, gradient norm and samples per second."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 2.6), constrained_layout=True)
    panels = (("lr", "learning rate"), ("grad_norm", "gradient norm"), ("samples_per_s", "samples / s"))
    for axis, (key, title) in zip(axes, panels, strict=True):
        axis.plot(_numbers(records, "step"), _numbers(records, key), color="#6c757d", linewidth=1.2)
        _style(axis, title)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_run(records: list[dict], run: Path) -> None:
    """losses.png, weights.png and progress.png in the run directory."""
    if not records:
        return
    plot_losses(records, run / "losses.png")
    plot_weights(records, run / "weights.png")
    plot_progress(records, run / "progress.png")
