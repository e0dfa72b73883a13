"""What the guards cost a step: signals agreed upon, the watch for divergence, the watchdog.

Steps with and without them in turn, on all ranks, each half of a pair timed as benchmarks/measure.py times."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path

from benchmarks.reliability import workload
from benchmarks.reliability.trial import Trial, attempt
from benchmarks.reliability.workload import Ranks, overrides, shared_store

NAME = "guards"
TARGET = "cost of all guards in the step: at most 1%"
MOST = 0.01
# A step of some tenths of a second: a guard's cost does not grow with the model, and nobody trains the tiny one.
SIZE = ("model.hidden_size=384", "model.heads=6", "model.layers=6", "model.intermediate_size=1536",
        "train.micro_batch_size=32", "train.precision=fp32", "train.steps=100000")  # fmt: skip


def trials(folder: Path, seed: int, quick: bool) -> Iterator[Trial]:
    store, pairs = shared_store(folder), 5 if quick else 25
    for stage in (1,) if quick else (0, 2):
        home = folder / f"guards-stage-{stage}"
        home.mkdir()
        settings = overrides(store, home, *SIZE, f"train.zero_stage={stage}", f"train.seed={seed}")

        def costs_little(_: Path, settings=settings, home=home) -> None:
            with Ranks(workload.PROCESSES, home, measured, settings, pairs, 4) as ranks:
                statuses = ranks.wait(1800)
                assert not any(statuses), f"exit statuses {statuses}: {ranks.said()[-600:]}"
            costs = json.loads((home / "costs.json").read_text())
            low, *_, high = statistics.quantiles(costs, n=5)
            cost = statistics.median(costs)
            assert cost <= MOST, f"{cost:.2%} of a step (p20 {low:.2%}, p80 {high:.2%})"

        yield attempt(folder, NAME, f"stage {stage}, {pairs} pairs", costs_little)


def measured(settings: list[str], pairs: int, steps: int) -> int:
    """Alternating pairs of ``steps`` steps with and without guards; the first rank writes what share they cost."""
    from itertools import count

    from benchmarks.measure import _time
    from fashionbert_fast.config import load_config
    from fashionbert_fast.distributed import barrier, init_distributed, shutdown
    from fashionbert_fast.engine.build import build
    from fashionbert_fast.engine.divergence import Watch
    from fashionbert_fast.engine.loop import train_step
    from fashionbert_fast.engine.stop import StopRequest
    from fashionbert_fast.engine.watchdog import Watchdog

    device = init_distributed()
    config = load_config(None, settings)
    run = build(config, Path(config.train.output), device)
    run.engine.train()
    step, batches, watch, costs = count(1), run.dataset[0], Watch(run), []

    def bare() -> None:
        train_step(run, batches, next(step))

    for _ in range(3):
        bare()
    for _ in range(pairs):
        with StopRequest() as stop, Watchdog(run) as watchdog:

            def guarded(stop=stop, watchdog=watchdog) -> None:
                number = next(step)
                report = train_step(run, batches, number)
                watch.add(number, report.losses_T, report.weights_T)
                stop.agreed()
                watchdog.progress()

            barrier()
            with_guards = _time(guarded, steps, device)
        barrier()
        costs.append(with_guards / _time(bare, steps, device) - 1)
    if run.rank == 0:
        (Path(config.train.output) / "costs.json").write_text(json.dumps(costs))
    shutdown()
    return 0
