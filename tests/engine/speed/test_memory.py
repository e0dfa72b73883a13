"""What a CPU run frees it gets back without page faults."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PAGES = 64 * 2**20 // 4096
COUNT_FAULTS = """
import resource, torch
from fashionbert_fast.engine.speed.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(64 * 2**20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

assert keep_freed_memory()
print(*(faults() for _ in range(40)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep freed memory")
def test_freed_memory_comes_back_without_page_faults():
    """Of a 64 MiB tensor allocated and freed again and again, in a process of its own: the setting is for good."""
    done = subprocess.run([sys.executable, "-c", COUNT_FAULTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    faults = [int(word) for word in done.stdout.split()]
    # The first rounds still grow the heap: small blocks settle in the gaps that the large one leaves.
    assert sum(faults[20:]) < PAGES / 100, faults
