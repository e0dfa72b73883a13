"""The operators under `torch.autocast`: what casts their arguments, as torch's own operators of the kind have it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import torch


def autocast(*, widest: bool = False, keep: tuple[str, ...] = ()) -> Callable[[Callable], Callable]:
    """Casts the floating arguments of an operator where autocast is on for the device of its first argument.

    The casts are recorded: gradients come back in the dtype of what was given. As with torch's operators, float64 is
    left alone, and autocast is off inside.

    Args:
        widest: to the widest dtype among them, as a norm computes, instead of to autocast's, as a matmul does.
        keep: arguments that the operator takes in any dtype.
    """

    def decorate(function: Callable) -> Callable:
        signature = inspect.signature(function)
        first_name = next(iter(signature.parameters))

        @functools.wraps(function)
        def run(*args, **kwargs):
            first = args[0] if args else kwargs.get(first_name)
            if not isinstance(first, torch.Tensor) or not _is_on(first.device.type):
                return function(*args, **kwargs)
            given = signature.bind(*args, **kwargs).arguments
            dtype = torch.get_autocast_dtype(first.device.type)
            dtypes = [x.dtype for x in given.values() if _is_cast(x)]
            if widest and dtypes:
                dtype = functools.reduce(torch.promote_types, dtypes)
            cast = {name: value if name in keep else _cast(value, dtype) for name, value in given.items()}
            with torch.autocast(first.device.type, enabled=False):
                return function(**cast)

        return run

    return decorate


def _is_on(device_type: str) -> bool:
    return device_type in ("cpu", "cuda") and torch.is_autocast_enabled(device_type)  # which refuses to hear of "meta"


def _is_cast(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64


def _cast(value, dtype: torch.dtype):
    if isinstance(value, tuple) and hasattr(value, "_make"):  # arguments grouped in a NamedTuple
        return type(value)(*(_cast(inner, dtype) for inner in value))
    return value.to(dtype) if isinstance(value, torch.Tensor) and _is_cast(value) else value
