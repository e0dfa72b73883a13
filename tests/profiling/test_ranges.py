"""Ranges: off they are nothing, on they nest, name what runs and add up."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from fashionbert_fast.data.config import DataConfig
from fashionbert_fast.data.pairs import PairDataset
from fashionbert_fast.kernels import _library
from fashionbert_fast.model.config import FashionBertConfig
from fashionbert_fast.objectives.pretraining import FashionBertForPreTraining
from fashionbert_fast.profiling import ranges


class Recorder:
    """A sink that notes (name, when it opened, when it closed), in the order of closing."""

    def __init__(self) -> None:
        self.clock, self.spans = 0, []

    def open(self, name):
        self.clock += 1
        return name, self.clock

    def close(self, handle):
        self.clock += 1
        self.spans.append((*handle, self.clock))


@pytest.fixture(scope="module")
def batch(store_and_titles):
    store, titles = store_and_titles
    return PairDataset(store, titles, np.arange(len(store)), DataConfig(), micro_batch_size=8, steps=1)[0][0]


@pytest.fixture
def model():
    config = FashionBertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, patches=4,
        patch_feature_size=24,
    )  # fmt: skip
    return FashionBertForPreTraining(config)


def _step(model, batch) -> None:
    with ranges.phase("forward"):
        loss = model(batch, batch.targets.counts_T).loss
    with ranges.backward():
        loss.backward()


def _hooks(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


def test_off_there_is_one_object_that_does_nothing_and_no_hook(model, batch):
    assert ranges.phase("forward") is ranges.phase("optimizer")
    assert _hooks(model) == 0
    with ranges.ranges(model, [Recorder()]):
        assert _hooks(model) > 0
    assert _hooks(model) == 0 and ranges.phase("forward") is ranges.phase("optimizer")
    start = time.perf_counter()
    for _ in range(1000):
        with ranges.phase("forward"):
            pass
    assert (time.perf_counter() - start) / 1000 < 20e-6  # a step has some ten


def test_every_part_of_a_step_has_its_range_and_they_nest(model, batch):
    recorder = Recorder()
    with ranges.ranges(model, [recorder]):
        _step(model, batch)
    names = [name for name, *_ in recorder.spans]
    parts = ["embed", "encoder layer 0", "encoder layer 1", "mlm head", "tia head", "mpm head", "weighting"]
    assert set(parts) <= set(names) and {"forward", "backward"} <= set(names)
    assert {f"backward of {part}" for part in parts} <= set(names)
    for _, start, end in recorder.spans:  # none begins in another and ends outside it
        assert not any(start < s < end < e for _, s, e in recorder.spans)
    spans = {name: (start, end) for name, start, end in recorder.spans}
    assert spans["backward"][0] < spans["backward of encoder layer 1"][0] < spans["backward of encoder layer 0"][0]
    assert spans["backward of encoder layer 0"][1] < spans["backward"][1]
    unknown = {ranges.phase_of(name) for name in names if not name.startswith(ranges.OPERATORS)} - set(ranges.PHASES)
    assert unknown == set()


@pytest.mark.skipif(not _library.NATIVE_AUTOGRAD, reason="built beside another torch: no observer of operators")
def test_custom_operators_have_ranges_forward_and_backward(model, batch):
    recorder = Recorder()
    with ranges.ranges(model, [recorder]):
        _step(model, batch)
    spans = [span for span in recorder.spans if span[0].startswith(ranges.OPERATORS)]
    names = [name.removeprefix(ranges.OPERATORS) for name, *_ in spans]
    for operator in ("packed_attention", "bias_gelu"):
        assert names.count(operator) == names.count(f"{operator}_backward") == 2  # one a layer, not two by redispatch
    assert names.count("masked_patch_embed") == 1 and "linear_cross_entropy" in names
    layer = next(span for span in recorder.spans if span[0] == "encoder layer 0")
    assert any(layer[1] < start < end < layer[2] for name, start, end in spans if name.endswith("packed_attention"))
    before = len(recorder.spans)
    _step(model, batch)
    assert len(recorder.spans) == before  # nobody listens any more


def test_ranges_change_no_gradient(model, batch):
    def gradients():
        torch.manual_seed(0)
        model.zero_grad()
        _step(model, batch)
        return [parameter.grad.clone() for parameter in model.parameters()]

    plain = gradients()
    with ranges.ranges(model, [ranges.Nvtx(), ranges.Trace()]):
        watched = gradients()
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))


def test_host_seconds_count_what_is_inside_only_once(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(ranges.time, "perf_counter", lambda: now[0])
    seconds = ranges.HostSeconds()

    def span(name, before, after, *inner):
        handle = seconds.open(name)
        now[0] += before
        for one in inner:
            span(*one)
        now[0] += after
        seconds.close(handle)

    span("step 3", 1, 2, ("forward", 3, 4, ("encoder layer 0", 5, 0), ("encoder layer 1", 6, 0)))
    assert seconds.take() == {"step": 3, "forward": 7, "encoder layer": 11}
    assert seconds.take() == {}


def test_steps_hold_the_wait_for_their_batch():
    recorder = Recorder()
    ranges._sinks.append(recorder)
    try:
        assert list(ranges.steps(iter("ab"), 7, 8)) == [(7, "a"), (8, "b")]
    finally:
        ranges._sinks.clear()
    assert [name for name, *_ in recorder.spans] == ["data wait", "step 7", "data wait", "step 8"]


def test_every_phase_is_in_the_docs():
    page = (_library.PACKAGE.parent / "docs" / "profiling.md").read_text()
    assert [name for name in ranges.PHASES if f"`{name}`" not in page] == []
