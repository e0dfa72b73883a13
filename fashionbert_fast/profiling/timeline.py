"""What happened while a run was watched, from a PyTorch trace or from Nsight Systems, and where the time went.

All times are seconds from one origin. Host time belongs to the innermost named range that was open; a kernel's time to
the innermost range open when the host launched it. On a CPU the operators are the kernels.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fashionbert_fast.profiling.ranges import OPERATORS, STEP, phase_of

OUTSIDE = "outside any phase"


@dataclass(frozen=True)
class Span:
    """Something on the host with a beginning and an end."""

    name: str
    start: float
    end: float
    thread: int = 0

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Kernel:
    """Work of a device: a kernel, a copy, a fill. launched: when the host asked for it. bytes: of a copy or a fill."""

    name: str
    start: float
    end: float
    launched: float
    stream: int = 0
    bytes: int | None = None

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass
class Timeline:
    """``ranges``: ours, of every thread. ``operators``: host calls of torch, outermost or not. ``kernels``: empty on a
    CPU. ``memory``: (time, bytes in use) of the device."""

    device: str
    ranges: list[Span]
    operators: list[Span] = field(default_factory=list)
    kernels: list[Kernel] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)

    @property
    def steps(self) -> list[Span]:
        return sorted((span for span in self.ranges if phase_of(span.name) == STEP), key=lambda span: span.start)


@dataclass
class PhaseRow:
    """A phase: how often it came, host seconds in it alone, device seconds launched from it, host seconds of it in
    which the device (on a CPU: the thread that steps) did nothing."""

    name: str
    calls: int = 0
    host_seconds: float = 0.0
    device_seconds: float = 0.0
    idle_seconds: float = 0.0


@dataclass
class KernelRow:
    """A kernel (on a CPU an operator): how often it ran and how long in all. flops and bytes: of all its calls, where
    they could be counted."""

    name: str
    calls: int = 0
    seconds: float = 0.0
    flops: float | None = None
    bytes: float | None = None


@dataclass
class Gap:
    """Device idle while the host was in ``phase``; ``before``: the kernel that ended it."""

    start: float
    seconds: float
    phase: str
    before: str


@dataclass
class Breakdown:
    """Of the captured steps together. explained: share of their wall time in a named phase. operators: torch's calls by
    the device time they caused; on a CPU the same as ``kernels``."""

    steps: int
    wall_seconds: float
    explained: float
    idle_share: float
    phases: list[PhaseRow]
    kernels: list[KernelRow]
    operators: list[KernelRow]
    gaps: list[Gap]


class Segments:
    """Nested spans as what follows one another: of each moment the innermost one's name."""

    def __init__(self, spans: Iterable[Span]) -> None:
        events = []
        for i, span in enumerate(spans):
            events += [(span.start, 1, -span.end, i, span.name), (span.end, 0, 0.0, i, span.name)]
        self.starts: list[float] = []
        self.names: list[str] = []
        open_: dict[int, str] = {}  # in the order of opening
        for time, opens, _, i, name in sorted(events):
            if opens:
                open_[i] = name
            else:
                del open_[i]
            innermost = next(reversed(open_.values())) if open_ else OUTSIDE
            if self.starts and self.starts[-1] == time:
                self.names[-1] = innermost
            else:
                self.starts.append(time)
                self.names.append(innermost)

    def at(self, time: float) -> str:
        i = bisect.bisect_right(self.starts, time) - 1
        return self.names[i] if i >= 0 else OUTSIDE

    def within(self, start: float, end: float) -> Iterable[tuple[str, float]]:
        """(name, seconds) of what lies between two moments, in order."""
        i = max(0, bisect.bisect_right(self.starts, start) - 1)
        if self.starts and start < self.starts[0]:
            yield OUTSIDE, min(end, self.starts[0]) - start
        while i < len(self.starts) and self.starts[i] < end:
            until = self.starts[i + 1] if i + 1 < len(self.starts) else end
            low, high = max(start, self.starts[i]), min(end, until)
            if high > low:
                yield self.names[i], high - low
            i += 1


def union(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Overlapping stretches put together, in order."""
    merged: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return merged


def _idle(busy: Sequence[tuple[float, float]], start: float, end: float) -> Iterable[tuple[float, float]]:
    """What lies between the stretches of ``busy``, within start and end."""
    for low, high in [*busy, (end, end)]:
        if low > start:
            yield start, min(low, end)
        start = max(start, high)
        if start >= end:
            return


def units(operators: Sequence[Span], known: Iterable[str]) -> list[tuple[Span, float]]:
    """Host operators with the seconds that are theirs alone, per thread.

    One of ``known`` or of this project is a unit: what it calls counts as its own. Any other is left what the operators
    it calls do not take.
    """
    known, found = set(known), []
    by_thread: dict[int, list[Span]] = defaultdict(list)
    for span in operators:
        by_thread[span.thread].append(span)
    for spans in by_thread.values():
        stack: list[list] = []  # [span, seconds of its own, is a unit]
        for span in sorted(spans, key=lambda span: (span.start, -span.end)):
            while stack and stack[-1][0].end <= span.start:
                found.append(tuple(stack.pop()[:2]))
            if stack and stack[-1][2]:
                continue
            if stack:
                stack[-1][1] -= span.seconds
            stack.append([span, span.seconds, span.name in known or span.name.startswith(OPERATORS)])
        found += [tuple(entry[:2]) for entry in stack]
    return found


def break_down(timeline: Timeline, known: Iterable[str] = ()) -> Breakdown:
    """Where the time of the captured steps went. ``known``: operators whose work was counted as wholes."""
    steps = timeline.steps
    if not steps:
        raise ValueError("there is no range called step")
    start, end = steps[0].start, steps[-1].end
    segments = Segments(span for span in timeline.ranges if not span.name.startswith(OPERATORS))
    phases: dict[str, PhaseRow] = {}

    def row(name: str) -> PhaseRow:
        return phases.setdefault(phase_of(name), PhaseRow(phase_of(name)))

    for name, seconds in segments.within(start, end):
        row(name).host_seconds += seconds
    for span in timeline.ranges:
        if not span.name.startswith(OPERATORS) and start <= span.start < end:
            row(span.name).calls += 1

    kernels: dict[str, KernelRow] = {}
    operators: dict[str, KernelRow] = {}

    def count(rows: dict[str, KernelRow], name: str, seconds: float) -> None:
        found = rows.setdefault(name, KernelRow(name))
        found.calls, found.seconds = found.calls + 1, found.seconds + seconds

    if timeline.device == "cuda":
        inside = [kernel for kernel in timeline.kernels if start <= kernel.start < end]
        # Of an export without torch's calls, the custom operators' ranges.
        calls = timeline.operators or [span for span in timeline.ranges if span.name.startswith(OPERATORS)]
        callers = Segments(span for span, _ in units(calls, known))
        for kernel in inside:
            row(segments.at(kernel.launched)).device_seconds += kernel.seconds
            count(kernels, kernel.name, kernel.seconds)
            caller = callers.at(kernel.launched)
            if caller != OUTSIDE:
                count(operators, caller, kernel.seconds)
        busy = union((kernel.start, kernel.end) for kernel in inside)
        names = {kernel.start: kernel.name for kernel in reversed(inside)}
    else:
        for span, seconds in units(timeline.operators, known):
            if start <= span.start < end:
                row(segments.at(span.start)).device_seconds += seconds
                count(kernels, span.name, seconds)
        operators = kernels
        busy = union((span.start, span.end) for span in timeline.operators)
        names = {span.start: span.name for span in reversed(timeline.operators)}
    gaps = []
    for low, high in _idle(busy, start, end):
        for name, seconds in segments.within(low, high):
            row(name).idle_seconds += seconds
        gaps.append(Gap(low - start, high - low, phase_of(segments.at(low)), names.get(high, "the end")))
    wall = end - start
    unnamed = sum(phases[name].host_seconds for name in (STEP, OUTSIDE) if name in phases)
    return Breakdown(
        steps=len(steps),
        wall_seconds=wall,
        explained=1 - unnamed / wall,
        idle_share=sum(gap.seconds for gap in gaps) / wall,
        phases=sorted(phases.values(), key=lambda row: -max(row.host_seconds, row.device_seconds)),
        kernels=sorted(kernels.values(), key=lambda row: -row.seconds),
        operators=sorted(operators.values(), key=lambda row: -row.seconds),
        gaps=sorted(gaps, key=lambda gap: -gap.seconds)[:10],
    )
