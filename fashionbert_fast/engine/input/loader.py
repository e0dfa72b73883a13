"""Batches of a run whose loader processes may die: killed for memory, or by what they read."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import signal
import threading
from collections.abc import Iterator
from multiprocessing.process import BaseProcess

from torch.utils.data import DataLoader

from fashionbert_fast.data.batch import Batch
from fashionbert_fast.engine.build import Run, build_loader
from fashionbert_fast.engine.health.signals import StopRequest
from fashionbert_fast.errors import InputError

MOST_DEATHS = 3  # in a row over one step


class LoaderDied(RuntimeError):
    """A process of the loader ended, by itself or by a signal."""


def steady_batches(run: Run, first_step: int, stop: StopRequest) -> Iterator[list[Batch]]:
    """Micro-batches of ``first_step`` to the last step, whatever becomes of the processes that assemble them.

    A batch is a function of its step: where a process died, others assemble what is due. `MOST_DEATHS` over one step
    ask for a ``stop``. The step before is handed out only then, so that all ranks stop after it and save it.

    Raises:
        InputError: there is no step before.
    """
    step, waiting, in_row, deaths = first_step, None, 0, 0
    while step < run.config.train.steps and in_row < MOST_DEATHS:
        # After a death the step that is due is asked for alone: it may be another that kills.
        loader = build_loader(run, step, step + 1 if in_row else None)
        try:
            for micro_batches in _while_alive(loader):
                if waiting is not None:
                    yield waiting
                waiting, step, in_row = micro_batches, step + 1, 0
        except LoaderDied as died:
            in_row, deaths = in_row + 1, deaths + 1
            print(
                f"rank {run.rank}: {died}; step {step + 1} is assembled anew (death {deaths} in this run)", flush=True
            )
    if in_row == MOST_DEATHS:
        why = f"its loader processes died {in_row} times over step {step + 1}; see that memory suffices (dmesg)"
        if waiting is None:
            raise InputError(f"rank {run.rank}: {why} and that {run.store.path} is whole, or set data.workers=0")
        print(f"rank {run.rank}: {why}; the run stops", flush=True)
        stop.asked = True
    if waiting is not None:
        yield waiting


def _while_alive(loader: DataLoader) -> Iterator[list[Batch]]:
    """The loader's batches. LoaderDied: as soon as the next is wanted of a loader with a process that ended."""
    if loader.num_workers == 0:
        yield from loader
        return
    iterator, workers = _started(loader)
    sentinels = {worker.sentinel: worker for worker in workers}

    def dead(seconds: float) -> list[BaseProcess]:
        return [sentinels[at] for at in multiprocessing.connection.wait(list(sentinels), seconds)]  # type: ignore[index]

    try:
        for _ in range(len(loader)):
            micro_batches, ended = None, dead(0)
            try:
                micro_batches = None if ended else next(iterator)
            except (RuntimeError, OSError, EOFError):  # torch's, or those of a connection to one that is about to end
                ended = dead(1)
                if not ended:
                    raise
            if ended:
                for worker in ended:
                    worker.join()  # else it may have no exit code yet
                codes = ", ".join(str(worker.exitcode) for worker in ended)
                raise LoaderDied(f"a loader process died (exit code {codes})") from None
            assert micro_batches is not None
            yield micro_batches
    finally:
        for worker in workers:
            worker.kill()  # one may hang, or wait for a lock that went with the dead, and none heeds SIGTERM


def _started(loader: DataLoader) -> tuple[Iterator[list[Batch]], set[BaseProcess]]:
    """An iterator over the loader and its processes. Their death is no signal handler's to raise, as torch would have
    it, in the middle of a step."""
    before, handler = set(multiprocessing.active_children()), signal.getsignal(signal.SIGCHLD)
    iterator = iter(loader)
    if getattr(handler, "__module__", "").startswith("torch.utils.data"):  # of another loader in this process
        handler = signal.SIG_DFL
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, handler)
    return iterator, set(multiprocessing.active_children()) - before
