"""The C library's allocator, set up for a training loop on a CPU."""

from __future__ import annotations

from fashionbert_fast import _host


def keep_freed_memory() -> bool:
    """Let the process keep what it frees, from now on; False, and nothing done, where the C library is not glibc.

    A step frees its large buffers and asks for the same sizes again. glibc maps each of them anew and gives it back
    when freed, so the kernel zeroes and maps every 4 KiB page again at its first touch: for a weight gradient that can
    take as long as the product that writes it. In return resident memory stays at its peak, which the first steps
    raise by a few of the largest buffers: small blocks settle in the gaps that those leave.
    """
    return _host.keep_freed_memory()
