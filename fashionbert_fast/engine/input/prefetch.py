"""Batches on the device before the step wants them: copied on a CUDA stream of their own, while the last step runs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import torch

from fashionbert_fast.data.batch import Batch, StepCounts


class Ready(NamedTuple):
    """An optimizer step's micro-batches and their counts, (8,) float32, see `StepCounts`."""

    counts: torch.Tensor
    micro_batches: list[Batch]


def on_device(batches: Iterator[list[Batch]], device: torch.device) -> Iterator[Ready]:
    """Each step's batches with their counts; on a GPU they are there, or on their way, one step ahead.

    Args:
        batches: of each step, in pinned memory where ``device`` is a GPU.
    """
    if device.type == "cuda":
        return _ahead(batches, device)
    return (Ready(StepCounts.of(micro_batches), micro_batches) for micro_batches in batches)


def _ahead(batches: Iterator[list[Batch]], device: torch.device) -> Iterator[Ready]:
    stream = torch.cuda.Stream(device)

    def copied(micro_batches: list[Batch]) -> tuple[Ready, torch.Event, list[Batch]]:
        counts = StepCounts.of(micro_batches).pin_memory()  # read on the host, before it goes
        with torch.cuda.stream(stream):
            moved = [batch.to(device, non_blocking=True) for batch in micro_batches]
            ready = Ready(counts.to(device, non_blocking=True), moved)
            return ready, stream.record_event(), micro_batches  # whose memory must last until it is copied

    def used(tensor: torch.Tensor) -> torch.Tensor:
        tensor.record_stream(torch.cuda.current_stream(device))  # else its memory goes back to the copies' stream
        return tensor

    coming = None
    for micro_batches in chain(batches, [None]):
        current, coming = coming, None if micro_batches is None else copied(micro_batches)
        if current is None:
            continue
        ready, event, _ = current
        torch.cuda.current_stream(device).wait_event(event)  # the host does not wait
        used(ready.counts)
        for batch in ready.micro_batches:
            batch.map(used)
        yield ready
