"""A linear layer and its loss as three matmuls and one pass, for `linear_patch_kld` and `linear_cross_entropy`.

The forward multiplies a block of rows, and while that block of logits is in the cache a native operator turns it, in
place, into the gradient of the row losses (in the dtype of the input; float32 logits or probabilities are never in
memory). The backward is two matmuls of that gradient, scaled by what arrives at the loss:

    grad_hidden = s residual @ weight,    grad_weight = s residual.T @ hidden,    grad_bias = s residual.sum(0)

The matmuls are the library's (oneDNN, cuBLAS): a tile kernel that fused the pass into them would have to see a whole
row before its first gradient, so read or multiply every logit twice.

Shapes: M rows, H hidden, D columns of the logits (patch feature or vocabulary).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

# Rows multiplied at once. Narrow logits stay in the cache until the native operator has seen them: 2,048 bfloat16
# columns are half of this CPU's L2, a third of an H100's. Logits as wide as a vocabulary stay in no cache: there a
# block is long enough that reading the weight anew for each costs little (256 rows: 4% slower than plain float32).
BLOCK_ROWS = {"cpu": 256, "cuda": 4096}
ALIGNED_ON = ("cuda",)
WIDE, BLOCK_ROWS_OF_WIDE = 8192, {"cpu": 1024, "cuda": 4096}


def _block_rows(device: torch.device, columns: int, rows: int) -> int:
    return (BLOCK_ROWS_OF_WIDE if columns >= WIDE else BLOCK_ROWS).get(device.type, max(rows, 1))


def _new_logits(hidden_MH: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """(rows, columns). On a GPU each row starts at a multiple of 16 bytes, or every matmul of them takes a slow kernel:
    30,522 bfloat16 logits, BERT's vocabulary, are 61,044 bytes."""
    multiple = 16 // hidden_MH.element_size() if hidden_MH.device.type in ALIGNED_ON else 1
    return hidden_MH.new_empty(rows, -(-columns // multiple) * multiple)[:, :columns]


def forward_blocks(
    hidden_MH: torch.Tensor,
    weight_DH: torch.Tensor,
    residual_: Callable[[torch.Tensor, slice], torch.Tensor],
    save: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Row losses (M,) and the residual (M, D), which is empty unless ``save``.

    Args:
        residual_: turns the logits of a block, in place, into the gradient of their row losses, which it returns.
    """
    M, D = hidden_MH.shape[0], weight_DH.shape[0]
    block = _block_rows(hidden_MH.device, D, M)
    logits_MD = _new_logits(hidden_MH, M if save else min(M, block), D)
    losses = []
    for first in range(0, M, block):
        rows = slice(first, min(first + block, M))
        part = logits_MD[rows] if save else logits_MD[: rows.stop - rows.start]
        torch.mm(hidden_MH[rows], weight_DH.t(), out=part)
        losses.append(residual_(part, rows))
    if not losses:
        losses.append(residual_(logits_MD, slice(0, 0)))
    return torch.cat(losses) if len(losses) > 1 else losses[0], logits_MD if save else _new_logits(hidden_MH, 0, D)


def fake_forward(hidden_MH, weight_DH, save):
    dtype = torch.float64 if hidden_MH.dtype == torch.float64 else torch.float32
    rows = hidden_MH.shape[0] if save else 0
    return hidden_MH.new_empty((), dtype=dtype), _new_logits(hidden_MH, rows, weight_DH.shape[0])


def scaled_(gradient: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``gradient`` times the float32 () ``scale``, in place. With a dimension of its own the scale is multiplied in
    float32 and only the product rounded; without one torch rounds it to the gradient's dtype first."""
    return gradient.mul_(scale.reshape(1))


def _backward(grad_loss, residual_MD, hidden_MH, weight_DH, bias):
    grad_hidden_MH, grad_weight_DH = hidden_MH.new_empty(hidden_MH.shape), weight_DH.new_empty(weight_DH.shape)
    for out, left, right in ((grad_hidden_MH, residual_MD, weight_DH), (grad_weight_DH, residual_MD.t(), hidden_MH)):
        if out.device.type == "cpu":  # where the matmul takes the scale as a number, for nothing
            scale = float(grad_loss)
            if scale == 0:  # a task whose preference is 0; a bfloat16 matmul scaled by 0 takes a second
                out.zero_()
            else:
                torch.addmm(out, left, right, beta=0, alpha=scale, out=out)
        else:  # reading it would wait for the device
            scaled_(torch.mm(left, right, out=out), grad_loss)
    grad_bias_D = scaled_(residual_MD.sum(0), grad_loss) if bias else weight_DH.new_empty(0)
    return grad_hidden_MH, grad_weight_DH, grad_bias_D


torch.library.impl("fashionbert_fast::linear_residual_backward", "CompositeExplicitAutograd")(_backward)


@torch.library.register_fake("fashionbert_fast::linear_residual_backward")
def _(grad_loss, residual_MD, hidden_MH, weight_DH, bias):
    grad_bias_D = weight_DH.new_empty(weight_DH.shape[0] if bias else 0)
    return hidden_MH.new_empty(hidden_MH.shape), weight_DH.new_empty(weight_DH.shape), grad_bias_D


def backward(grad_loss, residual_MD, hidden_MH, weight_DH, bias: bool = False):
    return torch.ops.fashionbert_fast.linear_residual_backward(grad_loss, residual_MD, hidden_MH, weight_DH, bias)
