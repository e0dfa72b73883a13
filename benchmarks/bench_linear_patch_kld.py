"""linear_patch_kld, forward and backward, against plain PyTorch, torch.compile of it and its three bare products."""

from __future__ import annotations

import torch

from benchmarks.measure import Row, compare, compare_memory, forward_backward
from fashionbert_fast.kernels import linear_patch_kld
from fashionbert_fast.kernels.linear_patch_kld import linear_patch_kld_reference

H, D = 768, 2048
ROWS = (1024, 4096, 16384)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PEERS = {"plain PyTorch": (1.2, 1.5), "torch.compile": (1.1, 1.2)}  # peer -> times faster to be: on a CPU, on a GPU
BARE = (1 / 1.20, 1 / 1.15)  # of the speed of the three products alone


def _inputs(count: int, dtype: torch.dtype, device: torch.device):
    """Hidden states, projection, raw features of which one row in ten is a target, and those rows."""
    generator = torch.Generator(device).manual_seed(count)
    hidden_MH = torch.randn(count, H, generator=generator, device=device).to(dtype)
    weight_DH = (torch.randn(D, H, generator=generator, device=device) * 0.02).to(dtype)
    features_RD = torch.randn(10 * count, D, generator=generator, device=device).to(dtype)
    rows_M = torch.randperm(10 * count, generator=generator, device=device)[:count]
    return (hidden_MH, weight_DH), features_RD, rows_M


def _bare_products(hidden_MH: torch.Tensor, weight_DH: torch.Tensor):
    """What no implementation can do without: the logits and the two gradients."""
    gradient_MD = hidden_MH @ weight_DH.T
    return lambda: (hidden_MH @ weight_DH.T, gradient_MD @ weight_DH, gradient_MD.T @ hidden_MH)


def rows(device: torch.device, quick: bool) -> list[Row]:
    """A row for each dtype, number of rows and peer, and one of memory; ``quick``: the fewest rows, fewer pairs."""
    result, gpu = [], device.type == "cuda"
    for name, dtype in DTYPES.items():
        if name == "float16" and not gpu:
            continue  # float16 products on a CPU are slower than float32 ones: nobody trains so
        torch.compiler.reset()
        for count in ROWS[:1] if quick else ROWS:
            parameters, features_RD, rows_M = _inputs(count, dtype, device)
            ours = forward_backward(linear_patch_kld, parameters, features_RD, rows_M)
            plain = forward_backward(linear_patch_kld_reference, parameters, features_RD, rows_M)
            compiled = forward_backward(
                torch.compile(linear_patch_kld_reference, dynamic=False), parameters, features_RD, rows_M
            )
            case = f"linear_patch_kld M={count} H={H} D={D} {name} forward+backward"
            repeats = {"device": device, "pairs": 5 if quick else 15}
            for peer, theirs in (("plain PyTorch", plain), ("torch.compile", compiled)):
                for a, b in zip(ours(), theirs(), strict=True):
                    tolerance = 4 * torch.finfo(b.dtype).eps
                    torch.testing.assert_close(a, b, atol=tolerance * b.abs().max().item() + 1e-7, rtol=tolerance)
                result.append(compare(case, peer, ours, theirs, target=PEERS[peer][gpu], **repeats))
            bare = _bare_products(*parameters)
            result.append(compare(case, "bare matrix products", ours, bare, target=BARE[gpu], **repeats))
            result.append(compare_memory(f"{case}, memory", "plain PyTorch", ours, plain, target=4.0, device=device))
    return result
