"""dropout_add_layer_norm, forward and backward with all five gradients, against what BERT's layers do, plain and
compiled: `layer_norm(residual + dropout(x + bias))`, with PyTorch's own dropout."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.measure import Row, check_same, compare, in_float64
from fashionbert_fast.kernels import dropout_add_layer_norm
from fashionbert_fast.kernels.dropout import draw_seed

# 32 pairs of 89 tokens through BERT-base; on a GPU 512, or launching is the time: 0.3 GB a tensor in float64.
ROWS, H = {"cpu": 2848, "cuda": 16 * 2848}, 768
# peer -> times faster to be
PEERS = {"plain PyTorch": 1.0, "torch.compile": 1.0}


def _theirs(x_TH, residual_TH, weight_H, ln_bias_H, bias_H, dropout: float) -> torch.Tensor:
    dropped_TH = F.dropout(x_TH + bias_H, dropout)
    return F.layer_norm(residual_TH + dropped_TH, weight_H.shape, weight_H, ln_bias_H, 1e-12)


def _ours(x_TH, residual_TH, weight_H, ln_bias_H, bias_H, dropout: float) -> torch.Tensor:
    seed = draw_seed(x_TH.device) if dropout else None  # a fresh mask a step, as theirs
    return dropout_add_layer_norm(
        x_TH, residual_TH, weight_H, ln_bias_H, bias_H=bias_H, eps=1e-12, dropout=dropout, seed=seed
    )


def _step(function):
    def run(tensors, grad_TH, dropout: float) -> list[torch.Tensor]:
        y_TH = function(*tensors, dropout)
        return [y_TH.detach(), *torch.autograd.grad(y_TH, tensors, grad_TH)]

    return run


def _inputs(dtype: torch.dtype, device: torch.device) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    T = ROWS[device.type]
    shapes = ((T, H), (T, H), (H,), (H,), (H,), (T, H))
    *tensors, grad_TH = (torch.randn(shape, generator=generator, device=device).to(dtype) for shape in shapes)
    return [tensor.requires_grad_() for tensor in tensors], grad_TH


def _check(tensors, grad_TH) -> None:
    """`check_same` where nothing drops: with dropout the masks differ."""
    ours, theirs = (_step(function)(tensors, grad_TH, 0.0) for function in (_ours, _theirs))
    exact = _step(_theirs)(in_float64(tensors), grad_TH.double(), 0.0)
    check_same(ours, theirs, exact, terms=len(grad_TH))


def rows(device: torch.device, quick: bool) -> list[Row]:
    """A row for each dtype, probability and peer."""
    result = []
    for dtype in (torch.bfloat16, torch.float32):
        tensors, grad_TH = _inputs(dtype, device)
        _check(tensors, grad_TH)
        for dropout in (0.1, 0.0):
            torch.compiler.reset()
            for peer, function in {
                "plain PyTorch": _theirs,
                "torch.compile": torch.compile(_theirs, dynamic=False),
            }.items():
                ours, theirs = _step(_ours), _step(function)
                name = str(dtype).removeprefix("torch.")
                case = f"dropout_add_layer_norm T={ROWS[device.type]} H={H} {name} p={dropout} forward+backward"
                inputs = (tensors, grad_TH, dropout)
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
