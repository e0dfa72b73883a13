"""DeepSpeed's part of a checkpoint is pickled, and a pickle runs what it says: here nothing is built but tensors, plain
containers and the classes of `ALLOWED`. Imports DeepSpeed, so it is imported where a checkpoint is read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

ALLOWED = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]  # which hold numbers and strings


class _Unpickled(TorchCheckpointEngine):
    """DeepSpeed's reader by torch's, which builds `ALLOWED` alone."""

    def load(self, path: str, map_location=None):
        with torch.serialization.safe_globals(ALLOWED):
            return torch.load(path, map_location=map_location, weights_only=True)


@contextlib.contextmanager
def reading_safely(engine) -> Iterator[None]:
    """Let DeepSpeed's ``engine`` read checkpoints like this while in the block."""
    before = engine.checkpoint_engine
    engine.checkpoint_engine = _Unpickled(engine._config)
    try:
        yield
    finally:
        engine.checkpoint_engine = before
