"""Named ranges of a training step: the same names in Nsight Systems (NVTX), in the PyTorch trace and in the metrics.

Off, which is the default, `phase` hands out one shared object that does nothing, and no module has a hook. On, what a
range is told to is a list of sinks: an NVTX domain, torch's profiler, a table of host seconds.

Only one thread works on a step at a time: while the backward runs in a thread of autograd, the caller's waits. So the
ranges of all threads nest in time, and those of the backward may end in another thread than they began in.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import nvtx
import torch
from torch import nn

from fashionbert_fast.kernels import _library

DOMAIN = "fashionbert_fast"
OPERATORS = "fashionbert_fast::"  # how the names of the custom operators begin
STEP = "step"
# Phase -> its colour. A range's name is its phase's, or that and a number: `encoder layer 3`.
PHASES = {
    STEP: "#d0d0d0",
    "data wait": "#e45756",
    "host to device": "#ff9da6",
    "forward": "#9ecae9",
    "embed": "#4c78a8",
    "encoder": "#7fb0d8",
    "encoder layer": "#5b8fc4",
    "mlm head": "#72b7b2",
    "tia head": "#54a24b",
    "mpm head": "#88d27a",
    "weighting": "#b279a2",
    "backward": "#ffbf79",
    "backward of weighting": "#d6a5c9",
    "backward of mlm head": "#f2cf5b",
    "backward of tia head": "#eeca3b",
    "backward of mpm head": "#e3b505",
    "backward of encoder layer": "#f58518",
    "backward of encoder": "#f6a04d",
    "backward of embed": "#c95d0c",
    "gradients": "#9d755d",
    "all-reduce": "#7b4173",
    "optimizer": "#bab0ac",
    "metrics": "#a0a0a0",
    "validation": "#d6a5c9",
    "checkpoint": "#79706e",
}
OPERATOR_COLOUR = "#439894"

T = TypeVar("T")


def phase_of(name: str) -> str:
    """The phase of a range: its name without the number. Custom operators are none."""
    return re.sub(r" \d+$", "", name)


class Sink(Protocol):
    """What ranges are told to. ``open`` returns what ``close`` needs; they may be called in different threads."""

    def open(self, name: str) -> Any: ...
    def close(self, handle: Any) -> None: ...


class Nvtx:
    """Ranges of an NVTX domain of our own, coloured by phase, for Nsight. Nothing listens: next to nothing happens."""

    def __init__(self) -> None:
        self.domain = nvtx.get_domain(DOMAIN)
        self.attributes: dict[str, Any] = {}

    def open(self, name: str) -> Any:
        if name not in self.attributes:
            colour = OPERATOR_COLOUR if name.startswith(OPERATORS) else PHASES[phase_of(name)]
            message = name.removeprefix(OPERATORS)
            self.attributes[name] = self.domain.get_event_attributes(
                message=message, color=colour, category=phase_of(message)
            )
        return self.domain.start_range(self.attributes[name])

    def close(self, handle: Any) -> None:
        self.domain.end_range(handle)


class Trace:
    """Ranges of torch's profiler, where it runs. It has the operators by itself."""

    def open(self, name: str) -> Any:
        if name.startswith(OPERATORS):
            return None
        record = torch.profiler.record_function(name)
        record.__enter__()
        return record

    def close(self, handle: Any) -> None:
        if handle is not None:
            handle.__exit__(None, None, None)


class HostSeconds:
    """Host seconds of each phase since the last `take`, what lies inside another phase counted there alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.open_: list[tuple[str, float]] = []  # (phase, when it or what lay inside it last gave way)

    def open(self, name: str) -> Any:
        if name.startswith(OPERATORS):
            return False
        now = self._credit()
        self.open_.append((phase_of(name), now))
        return True

    def close(self, handle: Any) -> None:
        if handle:
            now = self._credit()
            self.open_.pop()
            if self.open_:
                self.open_[-1] = (self.open_[-1][0], now)

    def _credit(self) -> float:
        """Give the innermost phase its time up to now, which is returned."""
        now = time.perf_counter()
        if self.open_:
            name, since = self.open_[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - since
            self.open_[-1] = (name, now)
        return now

    def take(self) -> dict[str, float]:
        """Host seconds by phase, and begin anew."""
        self._credit()
        seconds, self.seconds = self.seconds, {}
        return seconds


class _Phase(contextlib.AbstractContextManager):
    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        self.handles = _open(self.name)

    def __exit__(self, *_) -> None:
        _close(self.handles)


_sinks: list[Sink] = []
_OFF = contextlib.nullcontext()


def _open(name: str) -> list[tuple[Sink, Any]]:
    return [(sink, sink.open(name)) for sink in _sinks]


def _close(handles: list[tuple[Sink, Any]]) -> None:
    for sink, handle in reversed(handles):
        sink.close(handle)


def phase(name: str) -> contextlib.AbstractContextManager:
    """A range of that name while in the block; nothing where ranges are off. ``name``: see `PHASES`."""
    return _Phase(name) if _sinks else _OFF


def steps(items: Iterator[T], first: int, last: int) -> Iterator[tuple[int, T]]:
    """(step, item) for steps ``first`` to ``last``, each a range from the wait for its item to the next step's."""
    for step in range(first, last + 1):
        with phase(f"{STEP} {step}"):
            with phase("data wait"):
                item = next(items)
            yield step, item


class _Sections:
    """Ranges of a backward: each ends where the next begins, the last with the backward."""

    def __init__(self) -> None:
        self.handles: list[tuple[Sink, Any]] = []

    def begin(self, name: str) -> None:
        self.end()
        self.handles = _open(name)

    def end(self) -> None:
        _close(self.handles)
        self.handles = []


_sections = _Sections()


@contextlib.contextmanager
def backward() -> Iterator[None]:
    """The range of a backward, and the end of those that began in it."""
    with phase("backward"):
        yield
        _sections.end()


def _hooks(module: nn.Module, name: str) -> list[torch.utils.hooks.RemovableHandle]:
    """Ranges around a module's forward, and from when its output's gradient is known."""
    open_: list[list[tuple[Sink, Any]]] = []

    def before(*_) -> None:
        open_.append(_open(name))

    def after(_module, _inputs, output) -> None:
        if isinstance(output, torch.Tensor) and output.requires_grad:
            output.register_hook(lambda _: _sections.begin(f"backward of {name}"))
        _close(open_.pop())

    return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


def _named_modules(model: nn.Module, layers: bool) -> Iterator[tuple[nn.Module, str]]:
    """Modules of a `FashionBertForPreTraining` with a range each."""
    named: dict[str, Any] = dict(model.named_children())
    yield named["text_embeddings"], "embed"
    yield named["patch_embeddings"], "embed"
    yield named["weighter"], "weighting"
    for task in ("mlm", "tia", "mpm"):
        yield named[f"{task}_head"], f"{task} head"
    if not layers:
        yield named["encoder"], "encoder"
        return
    for i, layer in enumerate(named["encoder"].layers):
        yield layer, f"encoder layer {i}"


def _observe_operators() -> Callable[[], None]:
    """Ranges around every custom operator, forward and backward, by torch's own observers. Returns what ends them.

    They are in `_autograd.so`, so a build beside another torch than its own has none.
    """
    if not _library.NATIVE_AUTOGRAD:
        return lambda: None
    library = ctypes.CDLL(str(_library.PACKAGE / "_autograd.so"))
    open_: list[list[tuple[Sink, Any]]] = []
    enter = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(lambda name: open_.append(_open(name.decode())))
    leave = ctypes.CFUNCTYPE(None)(lambda: _close(open_.pop()))
    library.fashionbert_observe_operators(enter, leave)

    def stop(_called_by_address: tuple = (enter, leave)) -> None:
        library.fashionbert_observe_operators(None, None)

    return stop


@contextlib.contextmanager
def ranges(model: nn.Module, sinks: Sequence[Sink], *, layers: bool = True) -> Iterator[None]:
    """Tell ``sinks`` every range of ``model``'s training while in the block.

    Args:
        model: a `FashionBertForPreTraining`. layers: a range for each encoder layer; not where it replays CUDA graphs,
            which call no module.
    """
    assert not _sinks, "ranges are on already"
    _sinks.extend(sinks)
    handles = [handle for module, name in _named_modules(model, layers) for handle in _hooks(module, name)]
    stop = _observe_operators()
    try:
        yield
    finally:
        stop()
        for handle in handles:
            handle.remove()
        _sections.handles = []
        _sinks.clear()
