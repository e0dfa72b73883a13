"""Timing in pairs: ours and the peer in turn, so that a machine whose speed drifts slows both alike."""

from __future__ import annotations

import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from fashionbert_fast.doctor import installed_versions


@dataclass
class Row:
    """One line of the contract's benchmark JSON. ``ratio`` above 1: ours is that many times better."""

    case: str
    peer: str
    value: float
    peer_value: float
    unit: str
    ratio: float
    target: float
    met: bool
    spread: list[float]


def _time(function: Callable[[], object], calls: int, device: torch.device) -> float:
    """Seconds a call, over ``calls`` of them."""
    start = time.perf_counter()
    for _ in range(calls):
        function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / calls


def _calls_for(function: Callable[[], object], seconds: float, device: torch.device) -> int:
    """How many calls take about ``seconds``; warms up on the way."""
    calls = 1
    while True:
        elapsed = _time(function, calls, device) * calls
        if elapsed > seconds / 4 or calls >= 2**20:
            return max(1, int(calls * seconds / max(elapsed, 1e-9)))
        calls *= 2


def compare(
    case: str, peer: str, ours: Callable[[], object], theirs: Callable[[], object], *, target: float,
    device: torch.device, pairs: int = 15, seconds: float = 0.1,
) -> Row:  # fmt: skip
    """Time both in ``pairs`` alternating pairs of about ``seconds`` each; the ratio is the median of the pairs' ratios.

    Check that the two give equal results before calling this.
    """
    calls, their_calls = _calls_for(ours, seconds, device), _calls_for(theirs, seconds, device)
    times = [(_time(ours, calls, device), _time(theirs, their_calls, device)) for _ in range(pairs)]
    ratios = [b / a for a, b in times]
    low, *_, high = statistics.quantiles(ratios, n=5)
    ratio = statistics.median(ratios)
    value, peer_value = (statistics.median(column) * 1e6 for column in zip(*times, strict=True))
    return Row(case, peer, value, peer_value, "us", ratio, target, ratio >= target, [low, high])


def commit() -> str:
    """The checked-out commit, with `+` where the tree has changes; `unknown` outside a checkout."""
    root = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def device_name(device: torch.device) -> str:
    """A GPU's name, or the CPU's vendor line and how many threads are used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return f"{model}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def report(rows: list[Row], device: torch.device) -> dict:
    """The contract's benchmark JSON."""
    return {
        "device": device_name(device),
        "versions": installed_versions(),
        "commit": commit(),
        "rows": [asdict(row) for row in rows],
    }
