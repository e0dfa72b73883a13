"""patch_kld, forward and backward, against plain PyTorch (the reference the tests use) and torch.compile of it."""

from __future__ import annotations

import torch

from benchmarks.measure import Row, check_same, compare, in_float64
from benchmarks.ops import liger
from fashionbert_fast.kernels import patch_kld
from fashionbert_fast.kernels.patch_kld import patch_kld_reference

D = 2048
# On a GPU 16 times the two smaller, or launching is the time: 65,536 rows of logits are 1 GB in float64, the bfloat16
# features they are gathered from, seven times as many, 1.9 GB.
ROWS = {"cpu": (1024, 4096, 16384), "cuda": (16384, 65536)}
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
CASES = (  # name, dtype of the logits, of the targets, gathered from a feature matrix
    ("float32", F32, F32, False),
    ("bfloat16", BF16, BF16, False),
    ("float16", F16, F16, False),
    ("float32, bfloat16 features gathered", F32, BF16, True),  # what the model calls
)
# peer -> times faster to be: on a CPU, on a GPU
PEERS = {"plain PyTorch": (3.0, 4.0), "torch.compile": (1.3, 2.0), "log_softmax + Liger": (2.5, 2.5)}


def _step(function):
    def run(logits_MD, target, rows_M) -> tuple[torch.Tensor, torch.Tensor]:
        loss = function(logits_MD, target, rows_M)
        (gradient_MD,) = torch.autograd.grad(loss, logits_MD)
        return loss.detach(), gradient_MD

    return run


def _inputs(rows: int, dtype, target_dtype, gathered: bool, device: torch.device):
    """Logits, targets and rows to gather: one in seven of a feature matrix, about MPM's 10% of the patches."""
    generator = torch.Generator(device).manual_seed(rows)
    features = 7 * rows if gathered else rows
    logits_MD = torch.randn(rows, D, generator=generator, device=device).to(dtype).requires_grad_()
    target = torch.randn(features, D, generator=generator, device=device).to(target_dtype)
    rows_M = torch.randperm(features, generator=generator, device=device)[:rows] if gathered else None
    return logits_MD, target, rows_M


def rows(device: torch.device, quick: bool) -> list[Row]:
    """A row for each case, number of rows and peer; ``quick``: the fewest rows, fewer pairs."""
    result = []
    for name, dtype, target_dtype, gathered in CASES:
        torch.compiler.reset()  # each case is one compilation, not a step towards dynamic shapes
        sizes = ROWS[device.type]
        for count in sizes[:1] if quick else sizes:
            inputs = _inputs(count, dtype, target_dtype, gathered, device)
            logits_MD, *rest = inputs  # the targets stay narrow: the reference widens those that it gathers
            exact = _step(patch_kld_reference)(*in_float64([logits_MD]), *rest)
            compiled = torch.compile(patch_kld_reference, dynamic=False)
            functions = {"plain PyTorch": patch_kld_reference, "torch.compile": compiled}
            if liger.available(device):
                functions["log_softmax + Liger"] = liger.patch_kld
            for peer, function in functions.items():
                case = f"patch_kld M={count} D={D} {name} forward+backward"
                ours, theirs = _step(patch_kld), _step(function)
                check_same(ours(*inputs), theirs(*inputs), exact, max(count, D))
                target = PEERS[peer][device.type == "cuda"]
                result.append(
                    compare(
                        case,
                        peer,
                        lambda f=ours, x=inputs: f(*x),
                        lambda f=theirs, x=inputs: f(*x),
                        target=target,
                        device=device,
                        pairs=5 if quick else 15,
                    )
                )
    return result
