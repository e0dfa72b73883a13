"""The encoder's products in 8 bits: torchao's float8 training, on the tensor cores of sm_89 and later."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from fashionbert_fast.errors import InputError
from fashionbert_fast.model.config import FashionBertConfig
from fashionbert_fast.model.encoder import Encoder

FIRST_CAPABILITY = (8, 9)  # Ada; Hopper is 9.0
MULTIPLE = 16  # of both sizes of a matrix in an 8-bit product; the rows of a batch are one too (data.batches.Budget)


def _converter() -> Callable:
    try:
        from torchao.float8 import convert_to_float8_training  # pyright: ignore[reportMissingImports]  # optional
    except ImportError as error:
        raise InputError("train.fp8: torchao is not installed; pip install torchao, or set it to false") from error
    return convert_to_float8_training


def check_fp8(config: FashionBertConfig, device: torch.device) -> None:
    """InputError naming the field and the remedy where ``train.fp8`` cannot be had."""
    if device.type != "cuda":
        raise InputError(f"train.fp8: needs a CUDA device of sm_89 or later, this is a {device.type}; set it to false")
    capability = torch.cuda.get_device_capability(device)
    if capability < FIRST_CAPABILITY:
        raise InputError(
            f"train.fp8: this device is sm_{capability[0]}{capability[1]}, 8-bit products need sm_89 or later; set it "
            "to false"
        )
    for name in ("hidden_size", "intermediate_size"):
        if getattr(config, name) % MULTIPLE:
            raise InputError(f"train.fp8: needs model.{name} in multiples of {MULTIPLE}, got {getattr(config, name)}")
    _converter()


def convert_to_fp8(encoder: Encoder) -> None:
    """Let torchao compute the encoder's products, forward and backward: scaled by tensor, cast anew in each step.

    torch.compile fuses the scales and casts around each product, many small operators otherwise: for any number of
    rows, and once for each of the four shapes of weights. Weights, gradients and optimizer keep their precision. Called
    once the parameters are final, after DeepSpeed.
    """
    convert = _converter()

    def compiled(linear: nn.Linear) -> nn.Module:
        converted = convert(linear)
        converted.compile(dynamic=True)
        return converted

    encoder.convert_matmuls(compiled)
