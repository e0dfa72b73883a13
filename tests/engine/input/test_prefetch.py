"""Batches reach a GPU one step ahead, on a stream of their own: the order of the calls, by a GPU that notes them."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch

from fashionbert_fast.data.batch import StepCounts
from fashionbert_fast.data.config import DataConfig
from fashionbert_fast.data.pairs import PairDataset
from fashionbert_fast.engine.input.prefetch import on_device


@pytest.fixture
def steps(store_and_titles):
    store, titles = store_and_titles
    dataset = PairDataset(store, titles, np.arange(len(store)), DataConfig(), micro_batch_size=8, steps=4)
    return [dataset[i] for i in range(4)]


def test_on_a_cpu_they_are_passed_on(steps):
    found = list(on_device(iter(steps), torch.device("cpu")))
    assert all(ready.micro_batches is given for ready, given in zip(found, steps, strict=True))
    assert all(torch.equal(ready.counts, StepCounts.of(given)) for ready, given in zip(found, steps, strict=True))


class NotedGpu:
    """Streams and copies as calls in ``log``. A tensor `to` it is a clone; both streams are of this host."""

    def __init__(self, monkeypatch) -> None:
        self.log: list[tuple] = []
        self.copies: dict[int, tuple[torch.Tensor, str]] = {}  # by id: kept alive, the stream it was made on
        self.used: list[int] = []
        self.where = "compute"
        gpu = self

        class Stream:
            def __init__(self, device=None, name="copies") -> None:
                self.name = name

            def record_event(self):
                gpu.log.append(("event", self.name))
                return len(gpu.log)

            def wait_event(self, event) -> None:
                gpu.log.append(("wait", self.name))
                assert gpu.log[event - 1][0] == "event"

        @contextlib.contextmanager
        def on(stream):
            before, gpu.where = gpu.where, stream.name
            yield
            gpu.where = before

        def to(tensor, device, non_blocking=False):
            assert non_blocking
            clone = tensor.clone()
            gpu.copies[id(clone)] = clone, gpu.where
            return clone

        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "stream", on)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: Stream(name=gpu.where))
        monkeypatch.setattr(torch.Tensor, "to", to)
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
        monkeypatch.setattr(
            torch.Tensor, "record_stream", lambda tensor, stream: gpu.used.append((id(tensor), stream.name))
        )


def _tensors(ready) -> list[torch.Tensor]:
    found = [ready.counts]
    for batch in ready.micro_batches:
        batch.map(lambda tensor: found.append(tensor) or tensor)
    return found


def test_on_a_gpu_each_step_waits_for_its_copies_and_the_next_is_on_its_way(steps, monkeypatch):
    gpu = NotedGpu(monkeypatch)
    asked = []

    def loader():
        for i, step in enumerate(steps):
            asked.append(i)
            yield step

    found = []
    for i, ready in enumerate(on_device(loader(), torch.device("cuda"))):
        assert asked == list(range(min(i + 2, len(steps))))  # one step ahead, never two
        assert gpu.log.count(("event", "copies")) == min(i + 2, len(steps))
        assert gpu.log[-1] == ("wait", "compute") and gpu.log.count(("wait", "compute")) == i + 1
        for tensor in _tensors(ready):
            assert gpu.copies[id(tensor)][1] == "copies"
            assert (id(tensor), "compute") in gpu.used
        found.append(ready)
    assert len(found) == len(steps)
    for ready, given in zip(found, steps, strict=True):
        same = zip(_tensors(ready)[1:], _tensors(type(ready)(ready.counts, given))[1:], strict=True)
        assert all(torch.equal(mine, theirs) for mine, theirs in same)


@pytest.mark.gpu
def test_on_a_gpu_the_batches_are_what_was_given(steps):
    device = torch.device("cuda", torch.cuda.current_device())
    pinned = [[batch.pin_memory() for batch in step] for step in steps]
    for ready, given in zip(on_device(iter(pinned), device), steps, strict=True):
        assert torch.equal(ready.counts.cpu(), StepCounts.of(given))
        for mine, theirs in zip(ready.micro_batches, given, strict=True):
            assert torch.equal(mine.inputs.features_IPD.cpu(), theirs.inputs.features_IPD)
            assert torch.equal(mine.targets.mlm_label_M.cpu(), theirs.targets.mlm_label_M)
