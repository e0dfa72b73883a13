"""Steps of a real run, watched: warm ones, plain ones for the time, captured ones for the trace, one for the work."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from fashionbert_fast.data.batch import StepCounts
from fashionbert_fast.distributed import is_main
from fashionbert_fast.engine.build import Run, build_loader
from fashionbert_fast.engine.input.prefetch import on_device
from fashionbert_fast.engine.reporting.flops import useful_flops
from fashionbert_fast.engine.reporting.reporter import Meter
from fashionbert_fast.engine.step import train_step
from fashionbert_fast.profiling import ranges
from fashionbert_fast.profiling.work import Count, Work
from fashionbert_fast.progress import progress_bar

TRACE = "trace.json.gz"


@dataclass
class Captured:
    """plain_seconds: a step's with nothing watching. work: operator -> its count, of one step. useful_flops: of a step,
    see `engine.reporting.flops`."""

    plain_seconds: float
    work: dict[str, Count]
    useful_flops: float


def steps_needed(warmup: int, steps: int) -> int:
    return warmup + 2 * steps + 1


def _synchronise(run: Run) -> None:
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)


class _Steps:
    """A run's steps, some at a time, as the training loop does them: batch, step, metrics."""

    def __init__(self, run: Run, bar, task) -> None:
        self.run, self.bar, self.task = run, bar, task
        self.batches = on_device(iter(build_loader(run, 0)), run.device)
        self.done = 0
        self.meter = Meter(run)
        self.counts = torch.zeros(len(StepCounts._fields), dtype=torch.float64)

    def take(self, number: int) -> float:
        """Do so many; seconds of one."""
        run, log_every = self.run, self.run.config.train.log_every
        _synchronise(run)
        start = time.perf_counter()
        first = self.done + 1
        for step, ready in ranges.steps(self.batches, first, first + number - 1):
            report = train_step(run, ready.micro_batches, step, ready.counts)
            self.meter.add(report.counts)
            if step % log_every == 0:
                with ranges.phase("metrics"):
                    self.meter.record(step, report)
            self.done = step
            self.bar.update(self.task, completed=step)
        _synchronise(run)
        self.counts = report.counts.double().cpu()
        return (time.perf_counter() - start) / number


@contextlib.contextmanager
def _profiler_range(run: Run) -> Iterator[None]:
    """What Nsight captures with --capture-range=cudaProfilerApi."""
    if run.device.type != "cuda":
        yield
        return
    torch.cuda.profiler.start()
    yield
    torch.cuda.profiler.stop()


def capture_ranges(run: Run, warmup: int, steps: int) -> None:
    """Warm up, then steps with NVTX ranges between cudaProfilerStart and Stop: what a tool outside watches."""
    layers = not run.config.train.cuda_graphs
    run.engine.train()
    with progress_bar() as bar:
        taken = _Steps(run, bar, bar.add_task("profile", total=warmup + steps))
        taken.take(warmup)
        with ranges.ranges(run.engine.module, [ranges.Nvtx()], layers=layers), _profiler_range(run):
            taken.take(steps)


def capture(run: Run, warmup: int, steps: int, directory: Path) -> Captured:
    """``warmup`` steps, ``steps`` plain ones, ``steps`` captured ones, one with its work counted.

    Rank 0 writes trace.json.gz to ``directory``: operators with their shapes, kernels of a GPU, memory, and the named
    ranges of `profiling.ranges`.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    if run.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    layers = not run.config.train.cuda_graphs
    run.engine.train()
    with progress_bar() as bar:
        taken = _Steps(run, bar, bar.add_task("profile", total=steps_needed(warmup, steps)))
        taken.take(warmup)
        plain_seconds = taken.take(steps)
        sinks = [ranges.Nvtx(), ranges.Trace()]
        profiler = torch.profiler.profile(activities=activities, profile_memory=True, record_shapes=True)
        with ranges.ranges(run.engine.module, sinks, layers=layers), profiler:
            taken.take(steps)
        if is_main():
            profiler.export_chrome_trace(str(directory / TRACE))
        with Work() as work:
            taken.take(1)
    flops = useful_flops(run.engine.module.config, StepCounts(*taken.counts.tolist()))
    return Captured(plain_seconds, work.counts, flops)
