"""linear_fork: a bias-free linear layer whose input is a residual as well, as both halves of an encoder layer begin.

Formula, g and r being the gradients of product and residual:

    product = x weight',    residual = x;    dx = r + g weight,    dweight = g' x

The sum in dx is the matmul's: it adds to r in place (beta = 1 of a BLAS), where autograd would read both and write a
third in a pass of its own. r is written over where nobody else holds it, as autograd's own sums do.

Shapes: T tokens, K columns in, N columns out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fashionbert_fast.kernels._library import NATIVE_AUTOGRAD


def linear_fork(x_TK: torch.Tensor, weight_NK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(T, N) x @ weight.T, and x for the residual. Under autocast and beside another torch than the build's, which has
    no such backward (csrc/autograd/linear_fork.cpp), autograd sums."""
    if not NATIVE_AUTOGRAD or torch.is_autocast_enabled(x_TK.device.type):
        return F.linear(x_TK, weight_NK), x_TK
    return torch.ops.fashionbert_fast.linear_fork(x_TK, weight_NK)
