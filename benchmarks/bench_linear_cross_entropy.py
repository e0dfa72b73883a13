"""linear_cross_entropy, forward and backward, against plain PyTorch, torch.compile and its three bare products."""

from __future__ import annotations

import torch

from benchmarks import liger
from benchmarks.measure import Row, compare, compare_memory, forward_backward
from fashionbert_fast.kernels import linear_cross_entropy
from fashionbert_fast.kernels.linear_cross_entropy import linear_cross_entropy_reference

H, V = 768, 30522
ROWS = (256, 1024, 4096, 16384)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _inputs(count: int, dtype: torch.dtype, device: torch.device):
    generator = torch.Generator(device).manual_seed(count)
    hidden_MH = torch.randn(count, H, generator=generator, device=device).to(dtype)
    weight_VH = (torch.randn(V, H, generator=generator, device=device) * 0.02).to(dtype)
    bias_V = torch.zeros(V, device=device, dtype=dtype)
    return (hidden_MH, weight_VH, bias_V), torch.randint(V, (count,), generator=generator, device=device)


def _bare_products(hidden_MH: torch.Tensor, weight_VH: torch.Tensor, _bias_V: torch.Tensor):
    gradient_MV = hidden_MH @ weight_VH.T
    return lambda: (hidden_MH @ weight_VH.T, gradient_MV @ weight_VH, gradient_MV.T @ hidden_MH)


def rows(device: torch.device, quick: bool) -> list[Row]:
    """A row for each dtype, number of rows and peer, and one of memory; ``quick``: the fewest rows, fewer pairs."""
    result, gpu = [], device.type == "cuda"
    for name, dtype in DTYPES.items():
        if name == "float16" and not gpu:
            continue  # float16 products on a CPU are slower than float32 ones: nobody trains so
        torch.compiler.reset()
        for count in ROWS[:1] if quick else ROWS:
            parameters, labels_M = _inputs(count, dtype, device)
            ours = forward_backward(linear_cross_entropy, parameters, labels_M)
            plain = forward_backward(linear_cross_entropy_reference, parameters, labels_M)
            compiled = forward_backward(
                torch.compile(linear_cross_entropy_reference, dynamic=False), parameters, labels_M
            )
            case = f"linear_cross_entropy M={count} H={H} V={V} {name} forward+backward"
            repeats = {"device": device, "pairs": 5 if quick else 9, "seconds": 0.1}
            peers = {"plain PyTorch": plain, "torch.compile": compiled}
            if liger.available(device):
                peers["Liger fused linear CE"] = forward_backward(liger.linear_cross_entropy, parameters, labels_M)
            for peer, theirs in peers.items():
                for a, b in zip(ours(), theirs(), strict=True):
                    tolerance = 4 * torch.finfo(b.dtype).eps
                    torch.testing.assert_close(a, b, atol=tolerance * b.abs().max().item(), rtol=tolerance)
                result.append(compare(case, peer, ours, theirs, target=1.0, **repeats))
            bare = _bare_products(*parameters)
            result.append(compare(case, "bare matrix products", ours, bare, target=1 / 1.15, **repeats))
            result.append(compare_memory(f"{case}, memory", "plain PyTorch", ours, plain, target=2.0, device=device))
    return result
