"""The training loop: a step, then what it owes: a record, a validation, a checkpoint, a stop."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Self

from fashionbert_fast.config import Config, TrainConfig
from fashionbert_fast.distributed import HostSums, barrier, init_distributed, is_main, peers_needed, shutdown
from fashionbert_fast.engine.build import Run, build
from fashionbert_fast.engine.checkpointing.resume import prepare_directory, resume_run, resumes, sole_writer
from fashionbert_fast.engine.checkpointing.saver import Saver
from fashionbert_fast.engine.health.nonfinite import NonFiniteMonitor
from fashionbert_fast.engine.health.signals import Interrupted, StopRequest, end_with_launcher
from fashionbert_fast.engine.health.watchdog import Watchdog
from fashionbert_fast.engine.input.loader import steady_batches
from fashionbert_fast.engine.input.prefetch import on_device
from fashionbert_fast.engine.reporting.reporter import Reporter
from fashionbert_fast.engine.step import train_step
from fashionbert_fast.engine.validation import Validation
from fashionbert_fast.errors import TrainingStopped
from fashionbert_fast.files import write_text
from fashionbert_fast.profiling import ranges


class Due(NamedTuple):
    """What is owed after a step. stop: a signal asked for it."""

    stop: bool
    save: bool
    log: bool
    validate: bool

    @classmethod
    def at(cls, step: int, t: TrainConfig, asked: bool, validation: Validation, monitor: NonFiniteMonitor) -> Self:
        """asked: a signal reached some rank. A checkpoint comes after a record of each step that was passed over."""
        last, validate = step == t.steps, validation.due(step)
        stop = asked and not last
        save = stop or last or bool(t.checkpoint_every and step % t.checkpoint_every == 0)
        log = last or validate or step % t.log_every == 0 or (save and monitor.has_unreported())
        return cls(stop, save, log, validate)


def train(run: Run, first_step: int) -> None:
    """Steps ``first_step`` to the end, with metrics, checkpoints and, last, the plots.

    Raises:
        Interrupted: a signal asked for it; the step that was under way is done and saved. TrainingStopped: too many
            steps in a row were not finite. InputError: the disk has no room for the last step.
    """
    t = run.config.train
    validation, monitor, sums = Validation(run), NonFiniteMonitor(run), HostSums()
    saver, reporter = Saver.of(run), Reporter(run, first_step)
    run.engine.train()
    with Watchdog(run) as watchdog, saver, StopRequest() as stop, reporter:
        batches = on_device(steady_batches(run, first_step, stop), run.device)
        for step, ready in ranges.steps(batches, first_step + 1, t.steps):
            if validation.exhausted:
                validation.tell(step - 1)
                break
            report = train_step(run, ready.micro_batches, step, ready.counts)
            watchdog.progress()
            reporter.meter.add(report.counts)
            monitor.add(step, report)
            asked, *saving = sums(stop.asked, saver.writing, saver.failed)
            saver.advance(*saving)
            due = Due.at(step, t, bool(asked), validation, monitor)
            if due.log:
                record = reporter.record(step, report, monitor)
                if due.validate and "stopped" not in record:
                    record["validation"] = validation(step)
                    watchdog.progress()
                    reporter.meter.restart()  # validating is not training
                reporter.write(record, validation.last)
                if "stopped" in record:
                    raise TrainingStopped(record["stopped"])
            reporter.advance(step)
            if due.save or validation.wants_checkpoint(step):
                saver.save(step, best=validation.is_best(step), wait=due.stop or step == t.steps)
                watchdog.progress()
                reporter.meter.restart()  # copying is not training
            if due.stop:
                raise Interrupted(step)
    reporter.close()


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
