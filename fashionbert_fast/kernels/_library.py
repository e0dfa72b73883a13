"""Loads the native operators once: the CPU's built for the best level of processor that this one is (``_C.LEVEL.so``),
the GPU's (``_cuda.so``), and the C++ backwards (``_autograd.so``) beside the torch that they were built with.

What cannot load raises and says what to do: there is no fallback to slower operators. FASHIONBERT_CPU_LEVEL chooses
among the levels that were built.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch.autograd import forward_ad

from fashionbert_fast import cpu

PACKAGE = Path(__file__).parent.parent
REMEDY = (
    "build it here with `make setup`, or `pip install --no-build-isolation -e .` in the environment whose torch you use"
)


def _level() -> str:
    """The level whose library is loaded. ImportError where this processor runs none of those built, or not the one
    that FASHIONBERT_CPU_LEVEL asks for."""
    built = {path.name.split(".")[1] for path in PACKAGE.glob("_C.*.so")}
    if not built:
        raise ImportError(f"there is no {PACKAGE}/_C.*.so: {REMEDY}")
    needs = {level: set(flags) for level, flags in cpu.LEVELS.items() if level in built}
    if "native" in built:
        needs = {"native": set(BUILD["native_needs"].split())} | needs
    wanted = os.environ.get("FASHIONBERT_CPU_LEVEL")
    if wanted is not None and wanted not in needs:
        raise ImportError(f"FASHIONBERT_CPU_LEVEL={wanted}: this build has {', '.join(needs)}")
    for level in needs if wanted is None else [wanted]:
        missing = needs[level] - cpu.flags()
        if not missing:
            return level
    raise ImportError(f"{PACKAGE}/_C.{level}.so: this processor lacks {', '.join(sorted(missing))}: {REMEDY}")


def _load(library: Path) -> None:
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        raise ImportError(f"{library} could not be loaded ({error.__cause__ or error}): {REMEDY}") from error


try:
    from fashionbert_fast import _host
except ImportError as error:
    raise ImportError(f"{PACKAGE}/_host could not be loaded ({error}): {REMEDY}") from error

BUILD = _host.build_info()
LEVEL = _level()
# Without it, the same backwards are registered in Python, which takes longer than their work.
NATIVE_AUTOGRAD = torch.__version__.split("+")[0] == BUILD["torch"].split("+")[0]

_load(PACKAGE / f"_C.{LEVEL}.so")
if (PACKAGE / "_cuda.so").exists():
    _load(PACKAGE / "_cuda.so")
if NATIVE_AUTOGRAD:
    _load(PACKAGE / "_autograd.so")

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
