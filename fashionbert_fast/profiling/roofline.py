"""The roofline: what this device can do at most, measured now, and how near each operator and the whole step come.

An operator of F FLOPs on B bytes cannot take less than max(F / matmul rate, B / copy bandwidth): Williams, Waterman and
Patterson, "Roofline", CACM 2009.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from fashionbert_fast.profiling.timeline import KernelRow

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Ceilings:
    """matmul: dtype -> FLOP/s of a large product. bandwidth: bytes/s of a copy, read and written ones together."""

    matmul: dict[str, float]
    bandwidth: float


@dataclass(frozen=True)
class Point:
    """An operator, or the step: seconds, FLOPs and bytes in all. attained: the least time the ceilings allow, as a
    share of the time it took."""

    name: str
    seconds: float
    flops: float
    bytes: float
    attained: float


def _seconds(function: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Shortest of some calls in a row, each between events on a GPU: no wait of the host is in it."""
    for _ in range(2):
        function()
    if device.type == "cuda":
        events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        events[0].record()
        for event in events[1:]:
            function()
            event.record()
        torch.cuda.synchronize(device)
        return min(a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(events))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def measure_ceilings(device: torch.device, *, quick: bool = False) -> Ceilings:
    """Products of (m x k) by (k x n), m = k = n = 8192 on a GPU, 2048 on a CPU; a copy of 1 GiB, on a CPU 256 MiB.

    Args:
        quick: an eighth of the side and of the copy, for tests.
    """
    cuda = device.type == "cuda"
    side, size = (8192, 2**30) if cuda else (2048, 2**28)
    if quick:
        side, size = side // 8, size // 8
    matmul = {}
    for name, dtype in DTYPES.items():
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        matmul[name] = 2 * side**3 / _seconds(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device, 7)
    source = torch.ones(size // 4, device=device)  # not zeros: those are one page of memory until written
    target = torch.empty_like(source)
    return Ceilings(matmul, 2 * size / _seconds(lambda: target.copy_(source), device, 7))


def point(row: KernelRow, ceilings: Ceilings, dtype: str) -> Point | None:
    """An operator under the ceilings; None where its work is not known."""
    if not row.flops or not row.bytes or not row.seconds:
        return None
    least = max(row.flops / ceilings.matmul[dtype], row.bytes / ceilings.bandwidth)
    return Point(row.name, row.seconds, row.flops, row.bytes, least / row.seconds)


def plot_roofline(points: list[Point], ceilings: Ceilings, dtype: str, path: Path) -> None:
    """FLOP/s against FLOP/byte, both logarithmic: the ceilings as lines, operators as dots as large as their time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, axis = plt.subplots(figsize=(11, 5.5), constrained_layout=True)
    intensities = [point.flops / point.bytes for point in points]
    x = np.geomspace(min([*intensities, 0.1]) / 2, max([*intensities, 1000]) * 2, 200)
    for name, rate in ceilings.matmul.items():
        style = "-" if name == dtype else "--"
        axis.plot(x, np.minimum(rate, x * ceilings.bandwidth), style, color="#444444", linewidth=1)
        axis.text(x[0], rate, f"{name} matmul", va="bottom", fontsize=8, color="#444444")
        axis.axhline(rate, color="#444444", linewidth=0.4, linestyle=":")
    longest = max((point.seconds for point in points), default=1.0)
    for number, (one, intensity) in enumerate(zip(points, intensities, strict=True), start=1):
        colour, rate = "#d1495b" if one.name == "step" else "#4c78a8", one.flops / one.seconds
        label = f"{number}  {one.name.split('::')[-1]}  {one.attained:.0%}"
        size = 40 + 300 * one.seconds / longest
        axis.scatter(intensity, rate, s=size, color=colour, alpha=0.6, linewidths=0, label=label)
        axis.annotate(str(number), (intensity, rate), fontsize=7, ha="center", va="center")
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False, markerscale=0.4)
    axis.set(xscale="log", yscale="log", xlabel="FLOP / byte", ylabel="FLOP / s")
    axis.set_title(
        "Operators under the roofline; the percentage: share of the ceiling reached", loc="left", fontsize=10
    )
    axis.grid(alpha=0.25, which="both")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
