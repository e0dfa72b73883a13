"""CUDA graphs of the encoder: which batches share one, and that gradients leave it whole. Without a GPU a stand-in
captures: it has a graph's manners (inputs, outputs and gradients at fixed addresses) but computes as ever."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_capture import FakeCapture
from training import ENVIRONMENT

from fashionbert_fast.data.batch import Batch
from fashionbert_fast.data.config import DataConfig
from fashionbert_fast.data.packing import Budget
from fashionbert_fast.data.pairs import PairDataset
from fashionbert_fast.engine.speed import graphs
from fashionbert_fast.engine.speed.graphs import EncoderGraphs, check_cuda_graphs, graph_encoder
from fashionbert_fast.errors import InputError
from fashionbert_fast.model.config import METHODS, FashionBertConfig, TaskWeighting
from fashionbert_fast.objectives.pretraining import FashionBertForPreTraining

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "patch_dropout_prob": 0.0}


def _model(dropout: bool = False, **weighting) -> FashionBertForPreTraining:
    torch.manual_seed(0)
    config = FashionBertConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, patches=4,
        patch_feature_size=24, initializer_range=0.2, weighting=TaskWeighting(**weighting),
        **({} if dropout else NO_DROPOUT),
    )  # fmt: skip
    return FashionBertForPreTraining(config)


@pytest.fixture(scope="module")
def batches(store_and_titles):
    store, titles = store_and_titles
    dataset = PairDataset(
        store, titles, np.arange(len(store)), DataConfig(), micro_batch_size=8, steps=6, budget=Budget(16, 4)
    )
    return [dataset[step][0] for step in range(6)]


def _gradients(model) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("method", METHODS)
def test_losses_and_accumulated_gradients_are_those_without(batches, method):
    """Also when one graph replays twice between two steps of the optimizer: a gradient must not be added to itself."""
    plain, capture = _model(method=method), FakeCapture()
    graphed = copy.deepcopy(plain)
    graphed.encoder.forward = EncoderGraphs(graphed.encoder, capture)
    for batch in [*batches, batches[0]]:
        outputs = [model(batch, batch.targets.counts_T) for model in (plain, graphed)]
        torch.testing.assert_close(outputs[1].losses_T, outputs[0].losses_T)
        for output in outputs:
            output.loss.backward()
    torch.testing.assert_close(_gradients(graphed), _gradients(plain))
    assert 1 <= len(capture.captured) <= len({batch.inputs.rows for batch in batches}) < len(batches)


def test_a_graph_is_shared_by_batches_of_one_shape_whatever_their_images_and_masks(batches):
    capture = FakeCapture()
    model = _model()
    model.encoder.forward = encoder_graphs = EncoderGraphs(model.encoder, capture)
    other, *same = batches
    assert {batch.inputs.rows for batch in same} == {same[0].inputs.rows} != {other.inputs.rows}
    assert len({len(batch.inputs.features_IPD) for batch in same}) > 1
    for batch in same:
        model(batch, batch.targets.counts_T).loss.backward()
    assert len(capture.captured) == 1
    model(other, other.targets.counts_T)
    model(
        Batch(dataclasses.replace(other.inputs, max_seqlen=other.inputs.max_seqlen + 1), other.targets),
        other.targets.counts_T,
    )
    assert len(encoder_graphs.graphs) == len(capture.captured) == 3


def test_evaluation_and_shapes_beyond_the_most_run_without(batches, monkeypatch):
    capture = FakeCapture()
    model = _model()
    model.encoder.forward = EncoderGraphs(model.encoder, capture)
    with torch.no_grad():
        model.encode(batches[0].inputs)
    model.eval().encode(batches[0].inputs)
    assert capture.captured == []
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 1)
    model.train()
    shapes = {batch.inputs.rows: batch for batch in batches}
    for batch in shapes.values():
        model(batch, batch.targets.counts_T).loss.backward()
    assert len(shapes) > 1
    assert len(capture.captured) == 1


def test_the_seed_is_an_input(batches):
    """Each replay drops otherwise: the seed is copied in, not captured."""
    capture = FakeCapture()
    model = _model(dropout=True)
    model.encoder.forward = EncoderGraphs(model.encoder, capture)
    first, second = (model(batches[0], batches[0].targets.counts_T).losses_T for _ in range(2))
    assert len(capture.captured) == 1
    assert len(capture.captured[0]) == 3
    assert not torch.equal(first, second)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_under_deepspeed_a_run_learns_what_it_learns_without(store_path, tmp_path, precision):
    """At ZeRO 0, 1 and 2, whose hooks wait at every parameter, with two micro-batches a step."""
    worker = Path(__file__).parent / "graphs_worker.py"
    command = [sys.executable, str(worker), str(store_path), str(tmp_path), precision]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def test_a_device_without_graphs_is_named():
    with pytest.raises(InputError, match=r"train\.cuda_graphs"):
        check_cuda_graphs(torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_on_a_gpu_losses_and_gradients_are_those_without(batches, method):
    plain = _model(method=method).to("cuda", torch.bfloat16)
    graphed = copy.deepcopy(plain)
    graph_encoder(graphed.encoder)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True) for model in (plain, graphed)]
    for first in range(4):
        for batch in (batches[first], batches[first], batches[first + 1]):  # three micro-batches, two of one shape
            batch = batch.to("cuda")
            outputs = [model(batch, batch.targets.counts_T) for model in (plain, graphed)]
            torch.testing.assert_close(outputs[1].losses_T, outputs[0].losses_T, atol=1e-2, rtol=1e-2)
            for output in outputs:
                output.loss.backward()
        torch.testing.assert_close(_gradients(graphed), _gradients(plain), atol=2e-2, rtol=2e-2)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.gpu
def test_on_a_gpu_a_replay_draws_new_masks(batches):
    model, batch = _model(dropout=True).to("cuda"), batches[0].to("cuda")
    graph_encoder(model.encoder)
    first, second = (model(batch, batch.targets.counts_T).losses_T for _ in range(2))
    assert not torch.equal(first, second)


def test_a_capture_is_of_its_own_thread_alone(monkeypatch):
    """In global mode a loader's thread that pins memory meanwhile breaks the capture."""
    modes = []

    def capture(module, samples, pool):
        modes.append(torch.cuda.graph.keywords["capture_error_mode"])
        return module

    original = torch.cuda.graph
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    graphs.EncoderGraphs(torch.nn.Linear(1, 1))._capture(torch.nn.Identity(), ())
    assert modes == ["thread_local"] and torch.cuda.graph is original
