"""Timing in pairs: ours and the peer in turn, so that a machine whose speed drifts slows both alike."""

from __future__ import annotations

import ctypes
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path

import torch
from torch.linalg import vector_norm

from fashionbert_fast.commands.doctor import installed_versions
from fashionbert_fast.profiling.device import device_name
from fashionbert_fast.progress import progress

SHORTEST = False  # the GPU suite's rehearsal on a CPU: as few calls as give a row


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


@dataclass
class Figure:
    """A line of it that has no peer, and so nothing to meet."""

    case: str
    value: float
    unit: str


def shown(value: float, unit: str) -> str:
    """``value`` for people: microseconds in the unit they fit, nothing as 2.186e+04."""
    if unit == "us":
        while value >= 999.5 and unit != "s":
            value, unit = value / 1000, {"us": "ms", "ms": "s"}[unit]
    return f"{value:,.0f} {unit}" if value >= 999.5 else f"{value:.3g} {unit}"


def _time(function: Callable[[], object], calls: int, device: torch.device) -> float:
    """Seconds a call, over ``calls`` of them; on a GPU between events, its caches overwritten before each."""
    if device.type == "cuda":
        return _time_cold(function, calls, device)
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def _time_cold(function: Callable[[], object], calls: int, device: torch.device) -> float:
    """While the GPU overwrites its cache the host launches what comes next, so that launching is not in it."""
    larger_than_any_cache = torch.empty(2**28, dtype=torch.uint8, device=device)
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(calls)]
    for start, end in events:
        larger_than_any_cache.zero_()
        start.record()
        function()
        end.record()
    torch.cuda.synchronize(device)
    return sum(start.elapsed_time(end) for start, end in events) / 1e3 / calls


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

    Where a pair takes longer, there are fewer of them, at least 3, in about a minute. Check that the two give equal
    results before calling this.
    """
    if SHORTEST:
        pairs, seconds = 3, 1e-4
    calls, their_calls = _calls_for(ours, seconds, device), _calls_for(theirs, seconds, device)
    start = time.perf_counter()
    times = [(_time(ours, calls, device), _time(theirs, their_calls, device))]
    pairs = min(pairs, max(3, int(60 / (time.perf_counter() - start))))
    times += [(_time(ours, calls, device), _time(theirs, their_calls, device)) for _ in range(pairs - 1)]
    ratios = [b / a for a, b in times]
    low, *_, high = statistics.quantiles(ratios, n=5)
    ratio = statistics.median(ratios)
    value, peer_value = (statistics.median(column) * 1e6 for column in zip(*times, strict=True))
    return Row(case, peer, value, peer_value, "us", ratio, target, ratio >= target, [low, high])


def peak_extra_bytes(function: Callable[[], object], device: torch.device) -> int:
    """The most memory ``function`` held at once on top of what was held before, after one call to warm up.

    On CUDA what torch's allocator handed out, on a CPU the process's resident set (Linux).
    """
    function()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident("VmRSS")
    function()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def compare_memory(
    case: str, peer: str, ours: Callable[[], object], theirs: Callable[[], object], *, target: float,
    device: torch.device,
) -> Row:  # fmt: skip
    """Peak extra memory of both, the median of 3 (of 1 where that takes half a minute); the ratio says how many times
    less ours takes."""
    start = time.perf_counter()
    pairs = [(peak_extra_bytes(ours, device), peak_extra_bytes(theirs, device))]
    more = 2 if time.perf_counter() - start < 30 else 0
    pairs += [(peak_extra_bytes(ours, device), peak_extra_bytes(theirs, device)) for _ in range(more)]
    ratios = sorted(b / max(a, 1) for a, b in pairs)
    ratio = statistics.median(ratios)
    value, peer_value = (statistics.median(column) / 2**20 for column in zip(*pairs, strict=True))
    return Row(case, peer, value, peer_value, "MiB", ratio, target, ratio >= target, [ratios[0], ratios[-1]])


def forward_backward(
    function: Callable[..., torch.Tensor], parameters: Sequence[torch.Tensor], *rest: object
) -> Callable[[], list[torch.Tensor]]:
    """A call that gives the scalar ``function(*parameters, *rest)`` and its gradients of ``parameters``."""
    leaves = [parameter.detach().requires_grad_() for parameter in parameters]

    def run() -> list[torch.Tensor]:
        loss = function(*leaves, *rest)
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    return run


PEERS_ROUNDINGS = 32  # further off, a peer is another calculation: sums that plain PyTorch rounds to bfloat16 are 9 off


def in_float64(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Inputs of a float64 result: floating ones in float64, leaves as before."""
    return [
        x.detach().double().requires_grad_(x.requires_grad) if x.is_floating_point() else x.detach() for x in tensors
    ]


def check_same(
    mine: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor], exact: Sequence[torch.Tensor], terms: int = 0
) -> None:
    """AssertionError unless each tensor of ours is about as near to ``exact``, the same in float64, as the peer's.

    Neither of two honest sums in float32 is the measure of the other: they differ by their order. The largest error may
    be twice the peer's, a rounding of the dtype, and what summing so many ``terms`` in float32 in any order comes to:
    sqrt(terms) / 2 of its roundings (each addition rounds a partial sum: a random walk). Units: the largest number.
    """
    coarsest = max(torch.finfo(x.dtype).eps for x in theirs)
    summed = terms**0.5 / 2 * torch.finfo(torch.float32).eps
    for i, (a, b, right) in enumerate(zip(mine, theirs, exact, strict=True)):
        assert a.dtype == b.dtype and a.shape == b.shape, f"result {i}: {a.dtype} {a.shape}, {b.dtype} {b.shape}"
        info = torch.finfo(a.dtype)
        largest = max(vector_norm(right, inf).item(), info.smallest_normal)  # below it, roundings are as large as there
        ours, peers = (vector_norm(x - right, inf).item() / largest for x in (a, b))
        assert peers <= PEERS_ROUNDINGS * coarsest + summed, (
            f"result {i}: the peer's error is {peers:.2e}: not the same"
        )
        allowed = 2 * peers + info.eps + summed
        assert ours <= allowed, f"result {i}: error {ours:.2e}, of the peer {peers:.2e}: more than {allowed:.2e}"


def measure_parts(
    parts: dict[str, Callable[[torch.device], list[Row | Figure]]], device: torch.device,
    after: Callable[[list[Row | Figure], list[dict]], None],
) -> tuple[list[Row | Figure], list[dict]]:  # fmt: skip
    """The rows of all parts, and of each that failed a proof not met: one must not cost the others.

    ``after`` is called with both after every part, so that an interrupted run keeps what it measured.
    """
    rows: list[Row | Figure] = []
    failed: list[dict] = []
    for name, part in progress(list(parts.items()), total=len(parts), description="measurements"):
        start = time.perf_counter()
        try:
            rows += part(device)
        except Exception as error:
            failed.append({"proof": f"{name} ran", "k": 0, "n": 1, "met": False, "error": repr(error)[:2000]})
            print(f"{name}: {error}", file=sys.stderr, flush=True)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        after(rows, failed)
    return rows, failed


def commit() -> str:
    """The checked-out commit, with `+` where the tree has changes; `unknown` outside a checkout."""
    root = Path(__file__).parent
    if (root / "COMMIT").exists():  # carried from a checkout by benchmarks.gpu.carry
        return (root / "COMMIT").read_text().strip()
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


def report(rows: list[Row | Figure], device: torch.device) -> dict:
    """The contract's benchmark JSON."""
    return {
        "device": device_name(device),
        "versions": installed_versions(),
        "commit": commit(),
        "rows": [asdict(row) for row in rows],
    }
