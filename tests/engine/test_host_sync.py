"""A step never waits for the device: on CPU by the operators it calls, on a GPU by torch's own check."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fashionbert_fast.data.batch import StepCounts
from fashionbert_fast.data.config import DataConfig
from fashionbert_fast.data.pairs import PairDataset
from fashionbert_fast.engine.health.nonfinite import NonFiniteMonitor
from fashionbert_fast.engine.step import train_step
from fashionbert_fast.engine.train_state import TrainState
from fashionbert_fast.kernels import _linear_residual
from fashionbert_fast.model.config import METHODS, TASKS, FashionBertConfig, TaskWeighting
from fashionbert_fast.objectives.pretraining import FashionBertForPreTraining

# On CUDA each of these reads a value, or a number of rows, on the host.
READS_ON_THE_HOST = {
    "_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "masked_select", "_unique", "_unique2",
    "unique_dim", "unique_consecutive", "unique_dim_consecutive", "bincount", "repeat_interleave",
}  # fmt: skip
WEIGHTINGS = [{"method": method} for method in METHODS] + [
    {"method": "gradient", "normalise": "norm", "floor": 0.1},
    {"method": "min_norm", "normalise": "loss", "floor": 0.1},
    {"method": "loss", "detach_weights": True, "preference": (0.5, 1.0, 2.0)},
]


class HostReads(TorchDispatchMode):
    """Notes the operators that would make the host wait for a GPU. An operator of this project counts as one: what its
    CUDA half does, and copies between devices, only the test on a GPU below can tell."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.seen: set[str] = set()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split("::")[1].split(".")[0]
        self.seen.add(name)
        self.calls += 1
        by_mask = name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in READS_ON_THE_HOST or by_mask:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def _model(**weighting) -> FashionBertForPreTraining:
    torch.manual_seed(0)
    config = FashionBertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, patches=4,
        patch_feature_size=24, weighting=TaskWeighting(**weighting),
    )  # fmt: skip
    assert config.hidden_dropout_prob and config.attention_probs_dropout_prob and config.patch_dropout_prob
    return FashionBertForPreTraining(config)


@pytest.fixture(scope="module")
def batch(store_and_titles):
    store, titles = store_and_titles
    return PairDataset(store, titles, np.arange(len(store)), DataConfig(), micro_batch_size=8, steps=1)[0][0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=str)
def test_forward_and_backward_read_nothing_on_the_host(batch, weighting, dtype):
    model = _model(**weighting).to(dtype)
    with HostReads() as mode:
        model(batch, batch.targets.counts_T).loss.backward()
    assert mode.found == []
    # It saw forward and backward alike, and the operators as wholes.
    assert {"packed_attention", "packed_attention_backward", "linear_residual_backward"} <= mode.seen


def test_watching_for_divergence_reads_nothing_on_the_host(batch):
    model = _model()
    report = model(batch, batch.targets.counts_T).report
    train = SimpleNamespace(max_skipped_steps=1, precision="bf16")
    run = SimpleNamespace(
        tasks=TASKS, device=torch.device("cpu"), config=SimpleNamespace(train=train), state=TrainState()
    )
    monitor = NonFiniteMonitor(run)
    step = {"losses_T": report.losses_T, "weights_T": report.weights_T, "own_T": report.own_T}
    with HostReads() as mode:
        monitor.add(1, SimpleNamespace(**step, norm=torch.tensor(1.0)))
        monitor.add(2, SimpleNamespace(**step, norm=torch.tensor(torch.nan)))
    assert mode.found == []
    assert "where" in mode.seen
    assert monitor.has_unreported()


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_step_under_deepspeed_reads_nothing_and_adds_few_operators(build_run, stage, precision, accumulation):
    """DeepSpeed's own optimizers take thousands for 12 layers, and read on the host once a parameter at ZeRO-0."""
    run = build_run(
        f"train.zero_stage={stage}", f"train.precision={precision}", "model.layers=12",
        f"train.gradient_accumulation_steps={accumulation}",
    )  # fmt: skip
    micro_batches = run.dataset[0]
    counts = StepCounts.of(micro_batches)[:3]
    train_step(run, micro_batches, 1)  # makes the optimizer's state
    with HostReads() as bare:
        for batch in micro_batches:
            run.engine.module(batch, counts, accumulation).loss.backward()
    run.engine.zero_grad()
    with HostReads() as mode:
        train_step(run, micro_batches, 2)
    assert mode.found == []
    assert "_fused_adamw_" in mode.seen and bare.calls > 500 * accumulation
    assert mode.calls - bare.calls <= 70 * accumulation


@pytest.mark.parametrize("method", ["loss", "min_norm"])
def test_a_step_with_queries_reads_nothing(build_run, asked_path, method):
    run = build_run(f"data.store={asked_path}", "queries.weight=1", f"weighting.method={method}")
    micro_batches = run.dataset[0]
    train_step(run, micro_batches, 1)
    with HostReads() as mode:
        report = train_step(run, micro_batches, 2)
    assert mode.found == [] and report.query_2[0] > 0 and "logsumexp" in mode.seen


@pytest.mark.parametrize("method", ["fixed", "min_norm"])
@pytest.mark.parametrize("first_steps", [0, 9])
def test_a_step_with_the_contrastive_loss_reads_nothing(build_run, method, first_steps):
    """Beside the three tasks, whose head reads both sides, and before them."""
    run = build_run(
        "contrastive.weight=1", f"contrastive.first_steps={first_steps}", "contrastive.batch_size=12", "train.steps=9",
        "model.alignment_head=pooled", f"weighting.method={method}",
    )  # fmt: skip
    micro_batches = run.dataset[0]
    train_step(run, micro_batches, 1)
    with HostReads() as mode:
        report = train_step(run, micro_batches, 2)
    assert mode.found == [] and report.contrastive_2[0] > 0 and "logsumexp" in mode.seen


@pytest.mark.parametrize(
    "reads",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.clone().masked_fill_(x > 0, 0).unique(),
        lambda x: torch.equal(x, x),
        lambda x: x.clone().index_put_((x > 0,), torch.tensor(1.0)),
    ],
)
def test_the_check_finds_what_it_looks_for(reads):
    x = torch.randn(8)
    with HostReads() as mode:
        reads(x)
    assert mode.found


def test_the_shared_backward_reads_the_loss_gradient_on_a_cpu_only():
    """Meta tensors have no values to read: what is no CPU tensor goes the way of a GPU's."""
    grad_loss, residual_MD = torch.empty((), device="meta"), torch.empty(5, 3, device="meta")
    hidden_MH, weight_DH = torch.empty(5, 4, device="meta"), torch.empty(3, 4, device="meta")
    gradients = _linear_residual._backward(grad_loss, residual_MD, hidden_MH, weight_DH, True)
    assert [tuple(gradient.shape) for gradient in gradients] == [(5, 4), (3, 4), (3,)]


@pytest.mark.gpu
@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=str)
def test_a_step_on_a_gpu_never_synchronises(batch, weighting):
    model, batch = _model(**weighting).to("cuda", torch.bfloat16), batch.to("cuda")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        model(batch, batch.targets.counts_T).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # compiles the kernels, copies the preference over
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
