"""Loads the native operators (``_C.so``) and their C++ backwards (``_autograd.so``) once.

What cannot load raises and says what to do: there is no fallback.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch.autograd import forward_ad

LIBRARIES = [Path(__file__).parent.parent / name for name in ("_C.so", "_autograd.so")]

for library in LIBRARIES:
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        raise ImportError(
            f"{library} could not be loaded ({error.__cause__ or error}): build it with `make setup`, or "
            "`pip install --no-build-isolation -e .` in the environment whose torch you use"
        ) from error

IGNORED = -100  # a label or target row that counts for nothing, as in torch; csrc/common/tensor.h has it too
FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_floating(name: str, tensor: torch.Tensor) -> None:
    """ValueError naming the argument unless ``tensor`` is a floating tensor of a dtype the operators take."""
    if not isinstance(tensor, torch.Tensor) or tensor.dtype not in FLOATING:
        kind = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise ValueError(f"{name} must be a float32, bfloat16, float16 or float64 tensor, got {kind}")


def check_same(name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    """ValueError naming the argument unless both tensors share dtype and device."""
    if tensor.dtype != other.dtype:
        raise ValueError(f"{name} has dtype {tensor.dtype} but {other_name} has {other.dtype}: cast one of them")
    if tensor.device != other.device:
        raise ValueError(f"{name} is on {tensor.device} but {other_name} is on {other.device}: move one of them")


def reverse_mode_only(function: Callable) -> Callable:
    """``function``, refusing forward-mode differentiation: torch gives an operator without a formula for it zeros."""

    @functools.wraps(function)
    def run(*args, **kwargs):
        # Above -1 inside torch.func.jvp and forward_ad.dual_level only.
        if forward_ad._current_level >= 0 and any(map(_has_tangent, (*args, *kwargs.values()))):
            raise NotImplementedError(
                f"{function.__name__} has no forward-mode derivative (torch.func.jvp, torch.autograd.forward_ad): "
                "differentiate it in reverse mode, by backward or torch.func.vjp"
            )
        return function(*args, **kwargs)

    return run


def _has_tangent(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return any(map(_has_tangent, value))
    return isinstance(value, torch.Tensor) and forward_ad.unpack_dual(value).tangent is not None


def on_device_of_first(launch: Callable) -> Callable:
    """``launch`` with its first tensor's GPU as the current one, which is where Triton compiles for and launches."""

    @functools.wraps(launch)
    def run(first: torch.Tensor, *rest):
        with torch.cuda.device_of(first):
            return launch(first, *rest)

    return run
