"""masked_patch_embed, forward and backward, against plain PyTorch, torch.compile of it, and its bare matrix products:
torch's, over the unmasked rows copied out beforehand, with nothing of what comes before and after them.

The row "floor" says how many times faster than plain PyTorch an operator of no cost but those products would be: in
bfloat16 on a CPU that has instructions for it less than 1.5x. In float32 torch leaves half of an AVX-512 unit not made
by Intel idle, so that ours passes its products (csrc/cpu/matrix_product.h). On a CPU there are float32 rows against
ourselves with each of the two libraries by force: the library chosen must be no slower than either.
"""

from __future__ import annotations

import os

import torch

from benchmarks.measure import Row, check_same, compare, in_float64
from fashionbert_fast.kernels import masked_patch_embed
from fashionbert_fast.kernels.masked_patch_embed import masked_patch_embed_reference

P, D, H = 64, 2048, 768
MASKED = 0.1
# 16 to 256 pairs of 64 patches; on a GPU 16 times the two smaller, or launching is the time. 65,536 rows of features
# are 0.5 GB in float32, 1 GB in float64.
ROWS = {"cpu": (1024, 4096, 16384), "cuda": (16384, 65536)}
LIBRARIES, CHOSEN = ("matmul", "onednn"), 0.95  # of FASHIONBERT_FLOAT32_PRODUCTS; one is the default, hence not 1.0
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
# peer -> times faster to be: on a CPU, on a GPU
PEERS = {"plain PyTorch": (1.5, 1.5), "torch.compile": (1.0, 1.0), "bare matrix products": (0.8, 0.8)}


def _inputs(rows: int, dtype: torch.dtype, device: torch.device) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Arguments of the operator, and the gradient that comes in."""
    generator = torch.Generator(device).manual_seed(rows)

    def normal(*shape, scale=1.0):
        return (torch.randn(shape, generator=generator, device=device) * scale).to(dtype)

    features_BPD = normal(rows // P, P, D)
    mask_BP = torch.rand(rows // P, P, generator=generator, device=device) < MASKED
    parameters = [
        normal(H, D, scale=0.02),
        normal(P, H, scale=0.02),
        normal(H, scale=0.02),
        1 + normal(H, scale=0.02),
        normal(H, scale=0.02),
    ]
    inputs = [features_BPD, mask_BP, *(x.requires_grad_() for x in parameters)]
    return inputs, normal(rows // P, P, H)


def _step(function):
    def run(inputs, grad_BPH):
        out_BPH = function(*inputs)
        return out_BPH.detach(), *torch.autograd.grad(out_BPH, inputs[2:], grad_BPH)

    return run


def _bare_products(inputs, grad_BPH):
    """The two products, forward and weight gradient, ready to call."""
    unmasked_N = ~inputs[1].flatten()
    x_ND, grad_NH = inputs[0].flatten(0, 1)[unmasked_N], grad_BPH.flatten(0, 1)[unmasked_N]
    weight_HD = inputs[2].detach()
    return lambda: (x_ND @ weight_HD.T, grad_NH.T @ x_ND)


def _by(library: str, inputs, grad_BPH):
    """Ours, its float32 products by ``library``."""

    def run():
        os.environ["FASHIONBERT_FLOAT32_PRODUCTS"] = library
        try:
            return _step(masked_patch_embed)(inputs, grad_BPH)
        finally:
            del os.environ["FASHIONBERT_FLOAT32_PRODUCTS"]

    return run


def rows(device: torch.device, quick: bool) -> list[Row]:
    """A row for each dtype, number of rows and peer; ``quick``: the fewest rows, fewer pairs."""
    result = []
    for dtype in (F32, BF16, F16) if device.type == "cuda" else (F32, BF16):
        torch.compiler.reset()  # each dtype is one compilation, not a step towards dynamic shapes
        sizes = ROWS[device.type]
        for count in sizes[:1] if quick else sizes:
            case = f"masked_patch_embed N={count} D={D} H={H} {str(dtype).removeprefix('torch.')} forward+backward"
            inputs, grad_BPH = _inputs(count, dtype, device)
            compiled = torch.compile(masked_patch_embed_reference, dynamic=False)
            ours, bare = _step(masked_patch_embed), _bare_products(inputs, grad_BPH)
            exact = _step(masked_patch_embed_reference)(in_float64(inputs), grad_BPH.double())
            for peer, function in (
                ("plain PyTorch", _step(masked_patch_embed_reference)),
                ("torch.compile", _step(compiled)),
                ("bare matrix products", None),
            ):
                if function is not None:
                    check_same(ours(inputs, grad_BPH), function(inputs, grad_BPH), exact, max(count, D))
                result.append(
                    compare(
                        case,
                        peer,
                        lambda f=ours, x=inputs, g=grad_BPH: f(x, g),
                        bare if function is None else lambda f=function, x=inputs, g=grad_BPH: f(x, g),
                        target=PEERS[peer][device.type == "cuda"],
                        device=device,
                        pairs=5 if quick else 15,
                    )
                )
            if dtype == F32 and device.type == "cpu":
                for library in LIBRARIES:
                    result.append(
                        compare(
                            case,
                            f"float32 products by {library}",
                            lambda f=ours, x=inputs, g=grad_BPH: f(x, g),
                            _by(library, inputs, grad_BPH),
                            target=CHOSEN,
                            device=device,
                            pairs=5 if quick else 15,
                        )
                    )
            plain = _step(masked_patch_embed_reference)
            result.append(
                compare(
                    f"{case}, floor: bare matrix products",
                    "plain PyTorch",
                    bare,
                    lambda f=plain, x=inputs, g=grad_BPH: f(x, g),
                    target=1.0,
                    device=device,
                    pairs=5 if quick else 15,
                )
            )
    return result
