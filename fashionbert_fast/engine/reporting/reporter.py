"""What a run tells while it trains: records, a progress bar or, off a terminal, log lines, and plots at its end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from datetime import timedelta

import torch

from fashionbert_fast.data.batch import StepCounts
from fashionbert_fast.distributed import is_main
from fashionbert_fast.engine.build import DTYPES, Run
from fashionbert_fast.engine.health.nonfinite import NonFiniteMonitor
from fashionbert_fast.engine.reporting.flops import peak_flops, useful_flops
from fashionbert_fast.engine.reporting.metrics import MetricsWriter, read_metrics
from fashionbert_fast.engine.step import StepReport
from fashionbert_fast.model.config import CONTRASTIVE_TASK
from fashionbert_fast.profiling import ranges
from fashionbert_fast.progress import progress_bar


class Meter:
    """Turns what happened since the last logged step into a record. `record` waits for the device, `add` does not."""

    def __init__(self, run: Run, host_seconds: ranges.HostSeconds | None = None) -> None:
        self.run, self.host_seconds, self.steps = run, host_seconds, 0
        self.peak = peak_flops(run.device, DTYPES[run.config.train.precision]) * run.world_size
        self.counts = torch.zeros(len(StepCounts._fields), dtype=torch.float64, device=run.device)
        self.restart()

    def restart(self) -> None:
        """Forget what was counted: rates begin here."""
        self.counts.zero_()
        self.steps = 0
        if self.host_seconds is not None:
            self.host_seconds.take()
        self.start = time.perf_counter()

    def add(self, counts: torch.Tensor) -> None:
        self.counts += counts
        self.steps += 1

    def record(self, step: int, report: StepReport) -> dict:
        run = self.run
        weights, losses = report.weights_T.tolist(), report.losses_T.tolist()  # waits for the device
        seconds = time.perf_counter() - self.start  # so time is read after it
        counts = StepCounts(*self.counts.tolist())
        norm = run.engine.get_global_grad_norm()
        record = {
            "step": step,
            "samples": run.dataset.samples(step),
            "loss": sum(w * loss for w, loss in zip(weights, losses, strict=True)),
            "losses": dict(zip(run.tasks, losses, strict=True)),
            "weights": dict(zip(run.tasks, weights, strict=True)),
            "lr": report.lr,
            "grad_norm": None if norm is None else float(norm),
            "samples_per_s": (counts.pairs or counts.products) / seconds,
            "tokens_per_s": counts.tokens / seconds,
            "mfu": useful_flops(run.engine.module.config, counts) / seconds / self.peak,
        }
        if run.dataset.queries is not None:
            query_loss, record["query_accuracy"] = report.query_2.tolist()
            record["query_loss"] = query_loss
            record["loss"] += run.config.queries.weight * query_loss
        if run.config.contrastive.on:
            loss, record["itc_accuracy"] = report.contrastive_2.tolist()
            if CONTRASTIVE_TASK not in run.tasks:  # it came before them, and stands alone
                record["losses"][CONTRASTIVE_TASK] = loss
                record["loss"] += loss
        if self.host_seconds is not None:
            record["phases"] = {name: spent / self.steps for name, spent in self.host_seconds.take().items()}
        self.restart()
        return record


def _described(record: dict, validation: dict | None) -> str:
    """What stands below the progress bar, of a record and the last validation."""
    losses = "  ".join(f"{name} {value:.3f}" for name, value in record["losses"].items())
    losses += f"  queries {record['query_loss']:.3f}" if "query_loss" in record else ""
    held_out = "" if validation is None else f"  held out {validation['alignment_accuracy']:.3f}"
    skipped = f"  {record['skipped']} skipped" if record["skipped"] else ""
    return f"{losses}{held_out}{skipped}  {record['samples_per_s']:.0f} pairs/s"


def _log_line(step: int, steps: int, record: dict, samples_left: int, described: str) -> str:
    left = timedelta(seconds=round(samples_left / record["samples_per_s"]))
    return f"{time.strftime('%H:%M:%S')}  step {step:,} of {steps:,}  {described}  {left} left"


class Reporter:
    """Counts steps on every rank; writes and shows what they came to on the first one. A context manager."""

    def __init__(self, run: Run, first_step: int) -> None:
        self.run, self.first_step, self.steps = run, first_step, run.config.train.steps
        self.writer = MetricsWriter(run.directory, first_step, run.config) if is_main() else None
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Reporter:
        self.bar = self.stack.enter_context(progress_bar())
        self.meter = Meter(self.run, self.stack.enter_context(_watched(self.run)))
        self.task = self.bar.add_task("pretrain", total=self.steps, completed=self.first_step)
        return self

    def __exit__(self, *error) -> None:
        self.stack.__exit__(*error)

    def record(self, step: int, report: StepReport, monitor: NonFiniteMonitor) -> dict:
        """The record of ``step``, with why training must stop (``stopped``) where it must. Waits for the device; a
        collective."""
        with ranges.phase("metrics"):
            record = self.meter.record(step, report) | {"skipped": monitor.num_skipped()}
        reason = monitor.stop_reason()
        return record if reason is None else record | {"stopped": reason}

    def write(self, record: dict, validation: dict | None) -> None:
        """Write and show the record. validation: the last there was."""
        if self.writer is None:
            return
        self.writer.write(record)
        described = _described(record, validation)
        self.bar.update(self.task, detail=described)
        if self.bar.disable:  # no terminal: a batch job is watched by its log
            left = self.run.dataset.samples(self.steps) - self.run.dataset.samples(record["step"])
            print(_log_line(record["step"], self.steps, record, left, described), flush=True)

    def advance(self, step: int) -> None:
        """Show that ``step`` is done."""
        self.bar.update(self.task, completed=step)

    def close(self) -> None:
        """Of a run that has ended in order: end the files, and draw the plots."""
        if self.writer is not None:
            from fashionbert_fast.engine.reporting.plots import plot_run

            self.writer.close()
            plot_run(read_metrics(self.run.directory), self.run.directory)


@contextlib.contextmanager
def _watched(run: Run) -> Iterator[ranges.HostSeconds | None]:
    """NVTX ranges and host seconds by phase while in the block, where ``train.nvtx`` asks for them."""
    if not run.config.train.nvtx:
        yield None
        return
    seconds, layers = ranges.HostSeconds(), not run.config.train.cuda_graphs
    with ranges.ranges(run.engine.module, [ranges.Nvtx(), seconds], layers=layers):
        yield seconds
