"""The encoder as CUDA graphs: one launch forward, one backward, where a layer alone has dozens each way.

Only the encoder: it is nearly all launches of a step, its shapes repeat (`data.batches.Budget` rounds its rows up,
while a whole step's also vary with the distinct images and the masked words), and it has no collective and no
optimizer in it. Its gradients leave the graph through autograd's own nodes, so DeepSpeed's hooks see what they always
see, at ZeRO 0, 1 and 2 and on any number of ranks. The step's dropout seed is an input: every replay draws anew.

Shapes: T rows of the packed axis, H hidden.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

import torch
from torch import nn

from fashionbert_fast.errors import InputError
from fashionbert_fast.model.encoder import Encoder, Packing

MOST_GRAPHS = 16  # each holds a gradient of every encoder weight; batches of still other shapes run without a graph


def check_cuda_graphs(device: torch.device) -> None:
    """InputError naming the field where ``train.cuda_graphs`` cannot be had on ``device``."""
    if device.type != "cuda":
        raise InputError(f"train.cuda_graphs: needs a CUDA device, this is a {device.type}; set it to false")


class _OfTensors(nn.Module):
    """The encoder as a function of tensors alone, which is all a capture takes."""

    def __init__(self, encoder: Encoder, max_seqlen: int) -> None:
        super().__init__()
        self.encoder, self.max_seqlen = encoder, max_seqlen

    def forward(self, hidden_TH, cu_seqlens_S1, *seed) -> torch.Tensor:
        # Not by calling it: the encoder's forward has become that of `EncoderGraphs`.
        return Encoder.forward(self.encoder, hidden_TH, Packing(cu_seqlens_S1, self.max_seqlen, *seed))


def _own(grad: torch.Tensor) -> torch.Tensor:
    """A gradient in memory of its own. A replay writes all gradients where its last one did, and autograd would keep
    that memory as the parameter's ``.grad`` and add the next micro-batch's gradient to itself."""
    return grad if grad.is_cuda and torch.cuda.is_current_stream_capturing() else grad.clone()


class EncoderGraphs:
    """What an encoder's ``forward`` becomes: captures a graph for each shape it meets in training, then replays it.

    Args:
        encoder: with its final parameters: their addresses are part of a graph.
        capture: makes a module into one that replays, given sample inputs; torch's own.
        collected: whoever steps takes each micro-batch's gradients off the parameters before the next backward, so
            that no gradient needs memory of its own.
    """

    def __init__(self, encoder: Encoder, capture: Callable | None = None, *, collected: bool = False) -> None:
        self.encoder = encoder
        self.graphs: dict[tuple, Callable] = {}
        self.capture = capture or self._capture
        self.pool = None
        for parameter in encoder.parameters():
            if parameter.requires_grad and not collected:
                parameter.register_hook(_own)

    @staticmethod
    def key(hidden_TH: torch.Tensor, packing: Packing) -> tuple:
        """All that a graph has fixed but the values of its inputs."""
        shapes = tuple(hidden_TH.shape), tuple(packing.cu_seqlens_S1.shape)
        return *shapes, hidden_TH.dtype, packing.max_seqlen, packing.seed is not None

    def __call__(self, hidden_TH: torch.Tensor, packing: Packing) -> torch.Tensor:
        if not (self.encoder.training and torch.is_grad_enabled() and hidden_TH.requires_grad):
            return Encoder.forward(self.encoder, hidden_TH, packing)
        key = self.key(hidden_TH, packing)
        inputs = (hidden_TH, packing.cu_seqlens_S1) + (() if packing.seed is None else (packing.seed,))
        if key not in self.graphs:
            if len(self.graphs) == MOST_GRAPHS:
                return Encoder.forward(self.encoder, hidden_TH, packing)
            # The graph's own inputs, filled before each replay. They start as this batch's: offsets must make sense.
            samples = tuple(tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in inputs)
            self.graphs[key] = self.capture(_OfTensors(self.encoder, packing.max_seqlen), samples)
        return self.graphs[key](*inputs)

    def _capture(self, module: nn.Module, samples: tuple[torch.Tensor, ...]) -> Callable:
        # One pool for all: no two graphs are ever between their forward and their backward at once, so the next may
        # use the memory that holds the last one's activations.
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        with _capturing_this_thread_alone():
            return torch.cuda.make_graphed_callables(module, samples, pool=self.pool)


@contextlib.contextmanager
def _capturing_this_thread_alone() -> Iterator[None]:
    """Let captures forbid this thread's unsafe calls only: the loader's thread allocates pinned memory meanwhile.

    `make_graphed_callables` has no such argument; it takes its captures from `torch.cuda.graph`.
    """
    original = torch.cuda.graph
    torch.cuda.graph = functools.partial(original, capture_error_mode="thread_local")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        torch.cuda.graph = original  # pyright: ignore[reportAttributeAccessIssue]


def graph_encoder(encoder: Encoder, *, collected: bool = False) -> None:
    """Replay ``encoder`` in training from now on. collected: see `EncoderGraphs`."""
    encoder.forward = EncoderGraphs(encoder, collected=collected)
