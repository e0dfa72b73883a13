"""A new operator of your own, in one file: what torch needs to know before it treats it as one of its own.

    python examples/new_operator.py

Laid out as the files of fashionbert_fast/kernels/: formula, reference, Triton kernel, registration, public function. An
operator of the package has a CPU kernel in C++ besides, tests and a row of measurements: docs/operators.md.

Formula, squared ReLU (So et al. 2021) with the bias of the matmul before it:

    y = max(u, 0)^2,  u = x + bias;    dy/du = 2 max(u, 0)

Shapes: T tokens, F columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 1024


# Reference: plain PyTorch, no cleverness. It is the specification, and here the CPU's implementation as well ----------
def bias_squared_relu_reference(x_TF: torch.Tensor, bias_F: torch.Tensor) -> torch.Tensor:
    return (x_TF + bias_F).relu().square()


# Triton: the GPU's kernel, one pass over memory. Load low, compute in float32, store low ------------------------------
@triton.jit
def _kernel(x, bias, y, size, width, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < size
    u = tl.load(x + offsets, mask=inside).to(tl.float32) + tl.load(bias + offsets % width, mask=inside).to(tl.float32)
    positive = tl.maximum(u, 0.0)
    tl.store(y + offsets, (positive * positive).to(y.dtype.element_ty), mask=inside)


def launch(x_TF: torch.Tensor, bias_F: torch.Tensor) -> torch.Tensor:
    x_TF, bias_F = x_TF.contiguous(), bias_F.contiguous()
    y_TF = torch.empty_like(x_TF)
    if y_TF.numel() > 0:
        _kernel[(triton.cdiv(y_TF.numel(), BLOCK),)](x_TF, bias_F, y_TF, y_TF.numel(), x_TF.shape[1], BLOCK)
    return y_TF


# Registration: a schema, an implementation a device (the dispatcher chooses), shapes for torch.compile, a backward ----
torch.library.define("examples::bias_squared_relu", "(Tensor x_TF, Tensor bias_F) -> Tensor")
torch.library.impl("examples::bias_squared_relu", "CPU")(bias_squared_relu_reference)
torch.library.impl("examples::bias_squared_relu", "CUDA")(launch)


@torch.library.register_fake("examples::bias_squared_relu")
def _(x_TF, bias_F):
    return x_TF.new_empty(x_TF.shape)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad_TF):
    x_TF, bias_F = ctx.saved_tensors
    grad_x_TF = grad_TF * 2 * (x_TF + bias_F).relu()
    return grad_x_TF, grad_x_TF.sum(0)


torch.library.register_autograd("examples::bias_squared_relu", _backward, setup_context=_setup_context)


# Public function: says what it takes, and names the argument that it cannot take --------------------------------------
def bias_squared_relu(x_TF: torch.Tensor, bias_F: torch.Tensor) -> torch.Tensor:
    """max(x + bias, 0)^2, (T, F) in the dtype of ``x_TF``.

    Raises:
        ValueError: naming the argument whose shape, dtype or device is wrong.
    """
    if x_TF.dim() != 2 or not x_TF.is_floating_point():
        raise ValueError(f"x_TF must be floating of shape (T, F), got {x_TF.dtype} {tuple(x_TF.shape)}")
    if bias_F.shape != x_TF.shape[1:] or bias_F.dtype != x_TF.dtype or bias_F.device != x_TF.device:
        wanted = f"{x_TF.dtype} {tuple(x_TF.shape[1:])} on {x_TF.device}"
        raise ValueError(f"bias_F must be {wanted}, got {bias_F.dtype} {tuple(bias_F.shape)} on {bias_F.device}")
    return torch.ops.examples.bias_squared_relu(x_TF, bias_F)


def main() -> None:
    """The checks that every operator of the package passes, at one size."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x_TF, bias_F = torch.randn(5, 7, device=device), torch.randn(7, device=device)
    torch.testing.assert_close(bias_squared_relu(x_TF, bias_F), bias_squared_relu_reference(x_TF, bias_F))
    # The schema tells the truth, autograd is registered rightly, shapes are known without running, compilable.
    torch.library.opcheck(torch.ops.examples.bias_squared_relu, (x_TF.requires_grad_(), bias_F.requires_grad_()))
    # The backward is the derivative: against finite differences, in float64.
    doubles = [tensor.detach().double().requires_grad_() for tensor in (x_TF, bias_F)]
    torch.autograd.gradcheck(bias_squared_relu, doubles)
    # One node of the compiler's graph, not a break in it.
    compiled = torch.compile(bias_squared_relu, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x_TF, bias_F), bias_squared_relu(x_TF, bias_F))
    print(f"bias_squared_relu on {device}: reference, opcheck, gradcheck and compiler agree")


if __name__ == "__main__":
    main()
