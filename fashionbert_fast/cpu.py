"""The processor: what it is, what instructions it has, and what each of the levels that we compile for needs of it.

Read from /proc/cpuinfo: what the processor has, not what a library was told to use. Elsewhere than on Linux nothing is
known, which leaves the baseline.
"""

from __future__ import annotations

import functools
from pathlib import Path

_V3 = ("avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "abm", "movbe")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
# The levels of CMakeLists.txt, best first, and the flags that a processor needs for each.
LEVELS = {
    "x86-64-v4-bf16": (*_V4, "avx512_bf16"),
    "x86-64-v4": _V4,
    "x86-64-v3": _V3,
    "baseline": (),
}


@functools.cache
def cpu_info() -> dict[str, str]:
    """The fields of the first processor in /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    first = path.read_text().split("\n\n")[0] if path.exists() else ""
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def flags() -> frozenset[str]:
    """The instruction sets and other features that the kernel reports, by its names: `avx2`, `avx512_bf16`."""
    return frozenset(cpu_info().get("flags", "").split())
