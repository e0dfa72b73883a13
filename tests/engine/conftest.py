"""Runs of a tiny model, built and trained in this very process."""

from __future__ import annotations

import pytest
from training import own_traces

from fashionbert_fast.config import load_config
from fashionbert_fast.distributed import init_distributed, shutdown

SIZES = [
    "model.hidden_size=32", "model.heads=2", "model.layers=2", "model.intermediate_size=64", "model.vocab_size=300",
    "train.steps=8", "train.micro_batch_size=8", "train.lr=1e-3",
]  # fmt: skip


@pytest.fixture(scope="module")
def process_group():
    """A process group of this process alone; its device."""
    with own_traces():
        yield init_distributed()
        shutdown()


@pytest.fixture
def build_run(process_group, store_path, tmp_path):
    """Builds a `Run` of the tiny model with the given overrides; its engine is destroyed at the end."""
    from fashionbert_fast.engine import build

    engines = []

    def make(*overrides: str) -> build.Run:
        config = load_config(None, [f"data.store={store_path}", f"train.output={tmp_path}", *SIZES, *overrides])
        run = build.build(config, tmp_path, process_group)
        engines.append(run.engine)
        run.engine.train()
        return run

    yield make
    for engine in engines:
        engine.destroy()
