"""Parts that go wrong in every way a part can, between good ones."""

from __future__ import annotations

import os
import time

from benchmarks.gpu.gpu_parts import Part, Skipped
from benchmarks.measure import Figure


def _good(tell, device, dry):
    tell.row(Figure("good", 1.0, "us"))
    tell.proof("holds", True)


def _aborts(tell, device, dry):
    tell.row(Figure("before the abort", 2.0, "us"))
    os.abort()


def _hangs(tell, device, dry):
    tell.row(Figure("before the hang", 3.0, "us"))
    time.sleep(600)


def _raises(tell, device, dry):
    tell.row(Figure("before the error", 4.0, "us"))
    raise RuntimeError("out of memory, say")


def _skips(tell, device, dry):
    raise Skipped("needs what is not here")


def _torn(tell, device, dry):
    tell.row(Figure("whole", 5.0, "us"))
    with tell.path.open("a") as file:
        file.write('{"row": {"case": "torn')
        file.flush()
        os._exit(7)


PARTS = (
    Part("good", "works", 60, _good),
    Part("aborts", "dies of a signal", 60, _aborts),
    Part("hangs", "never ends", 2, _hangs),
    Part("raises", "raises", 60, _raises),
    Part("skips", "is skipped", 60, _skips),
    Part("torn", "dies while it writes", 60, _torn),
    Part("last", "works", 60, _good),
)
