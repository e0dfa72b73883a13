"""bias_gelu, forward and backward with the bias's gradient, against plain PyTorch and torch.compile of it."""

from __future__ import annotations

import torch

from benchmarks.measure import Row, check_same, compare, in_float64
from fashionbert_fast.kernels import bias_gelu
from fashionbert_fast.kernels.bias_gelu import bias_gelu_reference

# 32 pairs of 89 tokens through BERT-base; on a GPU 512, or launching is the time: a tensor is 0.3 GB in bfloat16,
# 1.1 GB in float64.
ROWS, F = {"cpu": 2848, "cuda": 16 * 2848}, 3072
# peer -> times faster to be
PEERS = {"plain PyTorch": 1.0, "torch.compile": 1.0}


def _step(function):
    def run(x_TF, bias_F, grad_TF) -> list[torch.Tensor]:
        y_TF = function(x_TF, bias_F)
        return [y_TF.detach(), *torch.autograd.grad(y_TF, (x_TF, bias_F), grad_TF)]

    return run


def _inputs(dtype: torch.dtype, device: torch.device) -> list[torch.Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    T = ROWS[device.type]
    shapes = ((T, F), (F,), (T, F))
    x_TF, bias_F, grad_TF = (torch.randn(shape, generator=generator, device=device).to(dtype) for shape in shapes)
    return [x_TF.requires_grad_(), bias_F.requires_grad_(), grad_TF]


def rows(device: torch.device, quick: bool) -> list[Row]:
    """A row for each dtype and peer."""
    result = []
    for dtype in (torch.bfloat16, torch.float32):
        torch.compiler.reset()
        inputs = _inputs(dtype, device)
        exact = _step(bias_gelu_reference)(*in_float64(inputs))
        peers = {
            "plain PyTorch": bias_gelu_reference,
            "torch.compile": torch.compile(bias_gelu_reference, dynamic=False),
        }
        for peer, function in peers.items():
            ours, theirs = _step(bias_gelu), _step(function)
            check_same(ours(*inputs), theirs(*inputs), exact, terms=ROWS[device.type])
            case = f"bias_gelu T={ROWS[device.type]} F={F} {str(dtype).removeprefix('torch.')} forward+backward"
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
