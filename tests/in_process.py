"""Runs of `pretrain` in the test's own process: two seconds each, where a process of its own takes ten."""

from __future__ import annotations

from pathlib import Path

from conftest import TINY_MODEL
from training import own_traces

from fashionbert_fast.config import load_config


def tiny_fields(store: Path, *overrides: str) -> list[str]:
    """The fields of a tiny model without dropout: 8 steps of 8 pairs, unless ``overrides`` say otherwise."""
    return [f"data.store={store}", "train.steps=8", "train.micro_batch_size=8", "train.lr=1e-3", *TINY_MODEL,
            *overrides]  # fmt: skip


def run_here(store: Path, output: Path, *overrides: str, resume: bool = False) -> Path:
    """`pretrain` with `tiny_fields`."""
    from fashionbert_fast.engine.train import pretrain

    with own_traces():
        return pretrain(load_config(None, [*tiny_fields(store, *overrides), f"train.output={output}"]), resume=resume)
