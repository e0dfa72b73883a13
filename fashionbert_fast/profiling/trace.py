"""A PyTorch trace (Chrome's format, as `torch.profiler` writes and Perfetto shows) read into a timeline."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from fashionbert_fast.errors import InputError
from fashionbert_fast.profiling.ranges import PHASES, phase_of
from fashionbert_fast.profiling.timeline import Kernel, Span, Timeline

DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
LAUNCHES = ("cuda_runtime", "cuda_driver")
MICROSECOND = 1e-6


def read_trace(path: Path) -> Timeline:
    """The timeline of the trace at ``path``, .json or .json.gz; InputError where it is none."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        events = json.loads(data)["traceEvents"]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read as a PyTorch trace ({error})") from error
    return timeline_of(events)


def timeline_of(events: list[dict]) -> Timeline:
    """The timeline of a trace's events."""
    ranges, operators, memory = [], [], []
    launched = {}  # correlation -> when the host launched it
    for event in events:
        kind, name, args = event.get("cat"), event.get("name", ""), event.get("args", {})
        if name == "[memory]":
            memory.append((event["ts"] * MICROSECOND, args))
        if event.get("ph") != "X":
            continue
        if kind == "user_annotation" and phase_of(name) in PHASES:
            ranges.append(_span(event))
        elif kind == "cpu_op":
            operators.append(_span(event))
        elif kind in LAUNCHES and "correlation" in args:
            launched[args["correlation"]] = event["ts"] * MICROSECOND
    kernels = [_kernel(event, launched) for event in events if event.get("cat") in DEVICE_WORK]
    device = "cuda" if kernels else "cpu"
    return Timeline(device, ranges, operators, kernels, _in_use(memory, cuda=device == "cuda"))


def _span(event: dict) -> Span:
    start = event["ts"] * MICROSECOND
    return Span(event["name"], start, start + event["dur"] * MICROSECOND, hash((event.get("pid"), event.get("tid"))))


def _kernel(event: dict, launched: dict) -> Kernel:
    start, args = event["ts"] * MICROSECOND, event.get("args", {})
    return Kernel(
        event["name"], start, start + event["dur"] * MICROSECOND, launched.get(args.get("correlation"), start),
        args.get("stream", 0), bytes=args.get("bytes"),
    )  # fmt: skip


def _in_use(events: list[tuple[float, dict]], *, cuda: bool) -> list[tuple[float, int]]:
    """(time, bytes in use) of the device: the allocator's own total where it has one (CUDA), else what was taken and
    given back since the beginning (CPU)."""
    found, total = [], 0
    for time, args in sorted(events, key=lambda event: event[0]):
        if (args.get("Device Type") == 1) != cuda:  # c10::DeviceType: 0 CPU, 1 CUDA
            continue
        total = args["Total Allocated"] if cuda else total + args["Bytes"]
        found.append((time, total))
    low = 0 if cuda else min((total for _, total in found), default=0)
    return [(time, total - low) for time, total in found]
