"""bias_gelu, forward and backward with the bias's gradient, against plain PyTorch and torch.compile of it."""

from __future__ import annotations

import torch

from benchmarks.measure import Row, compare
from fashionbert_fast.kernels import bias_gelu
from fashionbert_fast.kernels.bias_gelu import bias_gelu_reference

T, F = 2848, 3072  # 32 pairs of 89 tokens through BERT-base
# peer -> times faster to be
PEERS = {"plain PyTorch": 1.0, "torch.compile": 1.0}


def _step(function):
    def run(x_TF, bias_F, grad_TF) -> list[torch.Tensor]:
        y_TF = function(x_TF, bias_F)
        return [y_TF.detach(), *torch.autograd.grad(y_TF, (x_TF, bias_F), grad_TF)]

    return run


def _inputs(dtype: torch.dtype, device: torch.device) -> list[torch.Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    shapes = ((T, F), (F,), (T, F))
    x_TF, bias_F, grad_TF = (torch.randn(shape, generator=generator, device=device).to(dtype) for shape in shapes)
    return [x_TF.requires_grad_(), bias_F.requires_grad_(), grad_TF]


def _check(ours, theirs, dtype: torch.dtype) -> None:
    """AssertionError unless both agree to a few roundings of the largest element, plain PyTorch's being the coarser."""
    for mine, other in zip(ours, theirs, strict=True):
        scale = other.abs().max().item()
        roundings = 4 if mine.dim() == 2 else 32  # of one element; of a sum of T elements that plain PyTorch rounded
        torch.testing.assert_close(mine, other, atol=roundings * torch.finfo(dtype).eps * scale, rtol=0)


def rows(device: torch.device, quick: bool) -> list[Row]:
    """A row for each dtype and peer."""
    result = []
    for dtype in (torch.bfloat16, torch.float32):
        torch.compiler.reset()
        inputs = _inputs(dtype, device)
        peers = {
            "plain PyTorch": bias_gelu_reference,
            "torch.compile": torch.compile(bias_gelu_reference, dynamic=False),
        }
        for peer, function in peers.items():
            ours, theirs = _step(bias_gelu), _step(function)
            _check(ours(*inputs), theirs(*inputs), dtype)
            case = f"bias_gelu T={T} F={F} {str(dtype).removeprefix('torch.')} forward+backward"
            result.append(
                compare(
                    case,
                    peer,
                    lambda f=ours, x=inputs: f(*x),
                    lambda f=theirs, x=inputs: f(*x),
                    target=PEERS[peer],
                    device=device,
                    pairs=5 if quick else 15,
                )
            )
    return result
