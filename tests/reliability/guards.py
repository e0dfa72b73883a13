"""What the guards cost a step: what ranks agree on (signals, saves), the monitor for divergence, the watchdog.

Steps with and without them in turn, on all ranks, each half of a pair timed as benchmarks/measure.py times."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path

from tests.reliability import workload
from tests.reliability.trial import Trial, attempt
from tests.reliability.workload import Ranks, overrides, shared_store

NAME = "guards"
TARGET = "cost of all guards in the step: at most 1%"
MOST, STEPS = 0.01, 3  # steps of a half
# A step of some tenths of a second: a guard's cost does not grow with the model, and nobody trains the tiny one.
SIZE = ("model.hidden_size=384", "model.heads=6", "model.layers=6", "model.intermediate_size=1536",
        "train.micro_batch_size=16", "train.precision=fp32", "train.steps=100000")  # fmt: skip


def trials(folder: Path, seed: int, quick: bool) -> Iterator[Trial]:
    store, pairs = shared_store(folder), 30 if quick else 150
    for stage in (1,) if quick else (0, 2):
        home = folder / f"guards-stage-{stage}"
        home.mkdir()
        settings = overrides(store, home, *SIZE, f"train.zero_stage={stage}", f"train.seed={seed}")

        def costs_little(_: Path, settings=settings, home=home) -> str:
            with Ranks(workload.PROCESSES, home, measured, settings, pairs) as ranks:
                ranks.succeed(1800)
            costs = json.loads((home / "costs.json").read_text())
            low, *_, high = statistics.quantiles(costs, n=5)
            cost = statistics.median(costs)
            said = f"{cost:.2%} of a step (p20 {low:.2%}, p80 {high:.2%})"
            assert cost <= MOST, said
            return said

        yield attempt(folder, NAME, f"stage {stage}, {pairs} pairs", costs_little)


def measured(settings: list[str], pairs: int) -> int:
    """``pairs`` of `STEPS` with guards and without, every other pair the other way round: steps next to each other
    meet the same machine. The first rank writes what share the guards cost."""
    from itertools import count

    from benchmarks.measure import _time
    from fashionbert_fast.config import load_config
    from fashionbert_fast.distributed import HostSums, barrier, init_distributed, shutdown
    from fashionbert_fast.engine.build import build
    from fashionbert_fast.engine.checkpointing.saver import Saver
    from fashionbert_fast.engine.health.nonfinite import NonFiniteMonitor
    from fashionbert_fast.engine.health.signals import StopRequest
    from fashionbert_fast.engine.health.watchdog import Watchdog
    from fashionbert_fast.engine.step import train_step

    device = init_distributed()
    config = load_config(None, settings)
    run = build(config, Path(config.train.output), device)
    run.engine.train()
    step, batches, costs = count(1), run.dataset[0], []
    monitor, sums = NonFiniteMonitor(run), HostSums()
    saver = Saver(run.engine, run.directory, run.tokenizer_dir, config.to_yaml(), config.train)

    def bare() -> None:
        train_step(run, batches, next(step))

    for _ in range(3):
        bare()
    for pair in range(pairs):
        with Watchdog(run) as watchdog, StopRequest() as stop:

            def guarded(watchdog=watchdog, stop=stop) -> None:  # as loop.train does between steps
                number = next(step)
                report = train_step(run, batches, number)
                watchdog.progress()
                monitor.add(number, report)
                _, *saving = sums(stop.asked, saver.writing, saver.failed)
                saver.advance(*saving)

            times = {}
            for half in (guarded, bare) if pair % 2 else (bare, guarded):
                barrier()
                # To the slower rank's end: it is waited for sooner or later, with guards or without.
                times[half] = _time(lambda step=half: (step(), barrier()), STEPS, device)
        costs.append(times[guarded] / times[bare] - 1)
    if run.rank == 0:
        (Path(config.train.output) / "costs.json").write_text(json.dumps(costs))
    shutdown()
    return 0
