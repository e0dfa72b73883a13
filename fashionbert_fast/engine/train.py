"""The training loop: batch -> model.forward -> engine.backward -> engine.step -> metrics every N steps."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch

from fashionbert_fast.config import Config
from fashionbert_fast.data.batch import Batch, StepCounts
from fashionbert_fast.distributed import (
    HostSums,
    all_reduce_sum,
    barrier,
    init_distributed,
    is_main,
    peers_needed,
    shutdown,
)
from fashionbert_fast.engine.build import DTYPES, Run, build, seed_dropout
from fashionbert_fast.engine.checkpointing.resume import prepare_directory, resume_run, resumes, sole_writer
from fashionbert_fast.engine.checkpointing.saver import Saver
from fashionbert_fast.engine.health.nonfinite import Watch, gradient_norm, spoiled
from fashionbert_fast.engine.health.signals import Interrupted, StopRequest, end_with_launcher
from fashionbert_fast.engine.health.watchdog import Watchdog
from fashionbert_fast.engine.input.loader import steady_batches
from fashionbert_fast.engine.input.prefetch import on_device
from fashionbert_fast.engine.reporting.flops import peak_flops, useful_flops
from fashionbert_fast.engine.reporting.metrics import MetricsWriter, read_metrics
from fashionbert_fast.engine.validation import Validation
from fashionbert_fast.errors import InputError, TrainingStopped
from fashionbert_fast.files import write_text
from fashionbert_fast.model.config import CONTRASTIVE_TASK
from fashionbert_fast.profiling import ranges
from fashionbert_fast.progress import progress_bar


def _copied_ahead(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A small host tensor on ``device``; to a GPU from pinned memory, because a copy from any other waits for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@dataclass
class StepReport:
    """What an optimizer step found, on the device: nothing of it is read before a step is logged.

    losses_T: (T,) float32 mean losses over the global batch. weights_T: (T,) float32 task weights. Both are means over
    the micro-batches, each of which is weighted by its own. own_T: (T,) float32 this rank's sums of losses.
    counts: (8,) float32, see `StepCounts`. norm: () of the gradient; not finite where the step was passed over.
    query_2: (2,) float32 mean loss of the queries and share that found their item; zeros where there are none.
    contrastive_2: the same of the contrastive loss.
    """

    losses_T: torch.Tensor
    weights_T: torch.Tensor
    own_T: torch.Tensor
    counts: torch.Tensor
    norm: torch.Tensor
    query_2: torch.Tensor
    contrastive_2: torch.Tensor


def train_step(
    run: Run, micro_batches: list[Batch], step: int, counts: torch.Tensor | None = None
) -> StepReport:  # fmt: skip
    """Optimizer step ``step``, from 1: exactly one backward a micro-batch, every head in its loss.

    counts: (8,) float32 on the device, of this rank's micro-batches, see `StepCounts`; None: they are on the host.
    """
    if counts is None:
        counts = _copied_ahead(StepCounts.of(micro_batches), run.device)
    with ranges.phase("all-reduce"):
        counts = all_reduce_sum(counts)
    losses_T, weights_T, own_T = torch.zeros(3, len(run.tasks), device=run.device)
    query_2, contrastive_2 = torch.zeros(2, 2, device=run.device)
    for i, batch in enumerate(micro_batches):
        seed_dropout(run.device, run.config.train.seed, step, i, run.rank)
        with ranges.phase("host to device"):
            batch = batch.to(run.device, non_blocking=True)
        with ranges.phase("forward"):
            output = run.engine(batch, counts, len(micro_batches))
        with ranges.backward():
            run.engine.backward(spoiled(output.loss))
        with ranges.phase("optimizer"):
            run.engine.step()
        with ranges.phase("metrics"):
            losses_T += output.losses_T / len(micro_batches)
            weights_T += output.report.weights_T / len(micro_batches)
            own_T += output.report.own_T
            if output.query_2 is not None:
                query_2 += output.query_2 / len(micro_batches)
            if output.contrastive_2 is not None:
                contrastive_2 += output.contrastive_2 / len(micro_batches)
    norm = gradient_norm(run.engine, run.device)
    return StepReport(losses_T, weights_T, own_T, counts, norm, query_2, contrastive_2)


class Meter:
    """Turns what happened since the last logged step into a record. Reading it is the loop's only host sync."""

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

    def record(self, step: int, report: StepReport, lr: float) -> dict:
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
            "lr": lr,
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


@contextlib.contextmanager
def _watched(run: Run) -> Iterator[ranges.HostSeconds | None]:
    """NVTX ranges and host seconds by phase while in the block, where ``train.nvtx`` asks for them."""
    if not run.config.train.nvtx:
        yield None
        return
    seconds, layers = ranges.HostSeconds(), not run.config.train.cuda_graphs
    with ranges.ranges(run.engine.module, [ranges.Nvtx(), seconds], layers=layers):
        yield seconds


def train(run: Run, first_step: int) -> None:
    """Steps ``first_step`` to the end, with metrics, checkpoints and, last, the plots.

    Raises:
        Interrupted: a signal asked for it; the step that was under way is done and saved. InputError: the disk has no
            room for the last step.
    """
    t = run.config.train
    validation = Validation(run, first_step)
    writer = MetricsWriter(run.directory, first_step, run.config) if is_main() else None
    saver, sums = Saver(run.engine, run.directory, run.tokenizer_dir, run.config.to_yaml(), t), HostSums()
    run.engine.train()
    with Watchdog(run) as watchdog, saver, StopRequest() as stop, progress_bar() as bar, _watched(run) as host_seconds:
        meter, watch = Meter(run, host_seconds), Watch(run, first_step)
        task = bar.add_task("pretrain", total=t.steps, completed=first_step)
        batches = on_device(steady_batches(run, first_step, stop), run.device)
        for step, ready in ranges.steps(batches, first_step + 1, t.steps):
            if validation.exhausted:
                validation.tell(step - 1)
                break
            lr = run.engine.get_lr()[0]  # read now: the schedule moves on with the step
            report = train_step(run, ready.micro_batches, step, ready.counts)
            watchdog.progress()
            meter.add(report.counts)
            watch.add(step, report)
            asked, *saving = sums(stop.asked, saver.writing, saver.failed)
            saver.advance(*saving)
            stops = bool(asked) and step < t.steps
            saves = stops or step == t.steps or (t.checkpoint_every and step % t.checkpoint_every == 0)
            logs = step % t.log_every == 0 or step == t.steps or validation.due(step)
            if logs or (saves and watch.found()):
                with ranges.phase("metrics"):
                    record = meter.record(step, report, lr) | {"skipped": watch.skipped()}
                complaint = watch.complaint()
                if complaint:
                    record["stopped"] = complaint
                elif validation.due(step):
                    with ranges.phase("validation"):
                        record["validation"] = validation(step)
                    watchdog.progress()
                    meter.restart()  # validating is not training
                if writer is not None:
                    writer.write(record)
                    described = _described(record, validation.last)
                    bar.update(task, detail=described)
                    if bar.disable:  # no terminal: a batch job is watched by its log
                        left = run.dataset.samples(t.steps) - run.dataset.samples(step)
                        print(_log_line(step, t.steps, record, left, described), flush=True)
                if complaint:
                    raise TrainingStopped(complaint)
            bar.update(task, completed=step)
            if saves or validation.exhausted or validation.step == step:
                with ranges.phase("checkpoint"):
                    saver.begin(step, best=validation.step == step)
                    if (stops or step == t.steps) and (why := saver.finish()) is not None:
                        raise InputError(f"{run.directory}: its last step, {step}, is not saved: {why}; then --resume")
                watchdog.progress()
                meter.restart()  # copying is not training
            if stops:
                raise Interrupted(step)
    if writer is not None:
        from fashionbert_fast.engine.reporting.plots import plot_run

        writer.close()
        plot_run(read_metrics(run.directory), run.directory)


def pretrain(config: Config, *, resume: bool = False) -> Path:
    """Pre-train as ``config`` says and return the run directory. Under a launcher every process calls this.

    Raises:
        InputError: bad input, before any work is lost. Interrupted: see `train`. KeyboardInterrupt: a later Ctrl-C.
        PeerLost: another process of the run is gone.
    """
    end_with_launcher()
    resume = resumes(config, resume)
    directory = prepare_directory(config, resume)  # on every rank: none may wait for one that has given up
    with sole_writer(directory), peers_needed():
        return _pretrain(config, directory, resume)


def _pretrain(config: Config, directory: Path, resume: bool) -> Path:
    device = init_distributed()
    try:
        barrier()
        run = build(config, directory, device)
        first_step = resume_run(run) if resume else 0
        if is_main():
            write_text(directory / "config.yaml", config.to_yaml())
        train(run, first_step)
        barrier()
    finally:
        shutdown()
    return directory
