"""Runs of `pretrain` inside the test process: two seconds each, where a process of its own takes ten."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import TINY_MODEL

from fashionbert_fast.config import load_config
from fashionbert_fast.engine import loop


@contextmanager
def one_process() -> Iterator[None]:
    """Within, `pretrain` may be called again and again: DeepSpeed remembers the first process group, so that one stays.
    The environment and the handler of SIGTERM are afterwards as before."""
    environment, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "shutdown", lambda: None)
        yield
    signal.signal(signal.SIGTERM, handler)
    os.environ.clear()
    os.environ.update(environment)


def run_here(store: Path, output: Path, *overrides: str, resume: bool = False) -> Path:
    """`pretrain` of a tiny model without dropout: 8 steps of 8 pairs, unless ``overrides`` say otherwise."""
    fields = [f"data.store={store}", f"train.output={output}", "train.steps=8", "train.micro_batch_size=8",
              "train.lr=1e-3", *TINY_MODEL, *overrides]  # fmt: skip
    return loop.pretrain(load_config(None, fields), resume=resume)
