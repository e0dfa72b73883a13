"""`fashionbert` whose hearts beat faster, and whose main thread may stand still: started by test_watchdog.py.

[torchrun --nproc-per-node 2 -m] watchdog_worker.py TICK WHAT RANK pretrain ...

WHAT of rank RANK stands still: "step" 3 for ever, "validation" for longer than any silence is borne, or "nothing".
"""

from __future__ import annotations

import os
import sys
import time

from fashionbert_fast.cli import main
from fashionbert_fast.engine import train, validation
from fashionbert_fast.engine.health import watchdog

tick, what, rank, *words = sys.argv[1:]
watchdog.TICK = float(tick)
if os.environ.get("RANK", "0") == rank:
    step, measure = train.train_step, validation.measure

    def step_or_hang(run, micro_batches, number, *args):
        while what == "step" and number == 3:
            time.sleep(1)
        return step(run, micro_batches, number, *args)

    def measure_late(*args):
        if what == "validation":
            time.sleep(2 * watchdog.MOST_SILENT * watchdog.TICK)
        return measure(*args)

    train.train_step, validation.measure = step_or_hang, measure_late
sys.exit(main(words))
