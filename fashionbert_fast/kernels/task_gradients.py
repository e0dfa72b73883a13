"""task_gram, task_mix: the two passes of the gate of task gradients (objectives/weighting.py); between them it solves.

Formula, for task gradients g_i of one shape:

    task_gram: G_ij = <g_i, g_j>;   task_mix: sum_i w_i g_i

Each reads every gradient once. In plain PyTorch the first is T^2 dot products (each reads two gradients, widened by a
copy where they are bfloat16), the second T multiply-adds over a float32 buffer.

Shapes: T = 3 or 4 tasks; the gradients have any shape.
"""

from __future__ import annotations

import torch

from fashionbert_fast.kernels._library import check_floating, check_same, reverse_mode_only


# Reference -----------------------------------------------------------------------------------------------------------
def task_gram_reference(gradients: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The Gram matrix in plain PyTorch, (T, T) float32, float64 of float64 gradients."""
    flat = [gradient.reshape(-1).to(torch.promote_types(gradient.dtype, torch.float32)) for gradient in gradients]
    return torch.stack([torch.stack([torch.dot(a, b) for b in flat]) for a in flat])


def task_mix_reference(gradients: tuple[torch.Tensor, ...], weights_T: torch.Tensor) -> torch.Tensor:
    """The weighted sum in plain PyTorch, in float32 or wider, dtype of the gradients."""
    wide = torch.promote_types(gradients[0].dtype, torch.float32)
    mixed = torch.zeros_like(gradients[0], dtype=wide)
    for weight, gradient in zip(weights_T, gradients, strict=True):
        mixed.addcmul_(gradient.to(wide), weight)
    return mixed.to(gradients[0].dtype)


# Registration; the kernels are csrc/cpu/task_gradients.cpp and csrc/cuda/task_gradients.cu ---------------------------
@torch.library.register_fake("fashionbert_fast::task_gram")
def _(a, b, c, d=None):
    T = 3 if d is None else 4
    return a.new_empty((T, T), dtype=torch.float32)


@torch.library.register_fake("fashionbert_fast::task_mix")
def _(a, b, c, weights_T, d=None):
    return torch.empty_like(a)


# Public functions ----------------------------------------------------------------------------------------------------
@reverse_mode_only
def task_gram(gradients: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Gram matrix of the task gradients in one pass: the same bits every time, on CPU for any number of threads.

    Args:
        gradients: 3 or 4 tensors of one shape, dtype (float32, bfloat16, float16, float64) and device.

    Returns:
        gram_TT: (T, T) float32, symmetric. Not differentiable.

    Raises:
        ValueError: naming the argument whose number, shape, dtype or device is wrong.
    """
    return torch.ops.fashionbert_fast.task_gram.default(*_checked(gradients))


@reverse_mode_only
def task_mix(gradients: tuple[torch.Tensor, ...], weights_T: torch.Tensor) -> torch.Tensor:
    """sum_i w_i g_i of the task gradients in one pass, summed in float32 (float64 for float64). No host sync.

    Args:
        gradients: as for `task_gram`.
        weights_T: (T,) float32 on the gradients' device.

    Returns:
        mixed: shape and dtype of the gradients, contiguous. Not differentiable.

    Raises:
        ValueError: naming the argument whose number, shape, dtype or device is wrong.
    """
    a, b, c, *d = _checked(gradients)
    T = len(gradients)
    if not isinstance(weights_T, torch.Tensor) or weights_T.dtype != torch.float32 or weights_T.shape != (T,):
        raise ValueError(f"weights_T must be a ({T},) float32 tensor")
    if weights_T.device != a.device:
        raise ValueError(f"weights_T is on {weights_T.device} but the gradients are on {a.device}: move it")
    return torch.ops.fashionbert_fast.task_mix.default(a, b, c, weights_T.detach().contiguous(), *d)


def _checked(gradients: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    if len(gradients) not in (3, 4):
        raise ValueError(f"gradients must be 3 or 4 tensors, got {len(gradients)}")
    for i, gradient in enumerate(gradients):
        check_floating(f"gradients[{i}]", gradient)
        check_same(f"gradients[{i}]", gradient, "gradients[0]", gradients[0])
        if gradient.shape != gradients[0].shape:
            raise ValueError(
                f"gradients[{i}] has shape {tuple(gradient.shape)} but gradients[0] has {tuple(gradients[0].shape)}"
            )
    return [gradient.detach().contiguous() for gradient in gradients]
