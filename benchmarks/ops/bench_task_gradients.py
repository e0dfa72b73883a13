"""task_gram and task_mix against plain PyTorch (the references the tests use), at the hidden states of a base batch."""

from __future__ import annotations

import torch

from benchmarks.measure import Row, compare
from fashionbert_fast.kernels.task_gradients import task_gram, task_gram_reference, task_mix, task_mix_reference


def rows(device: torch.device, quick: bool) -> list[Row]:
    """A row for each operator and dtype: 32 samples of 89 tokens by 768, and on a GPU 16 times as many."""
    tokens, result = 32 * 89 * (16 if device.type == "cuda" else 1), []
    weights_T = torch.tensor([0.2, 0.5, 0.3], device=device)
    for dtype in (torch.float32, torch.bfloat16):
        generator = torch.Generator(device).manual_seed(0)
        gradients = tuple(torch.randn(tokens, 768, generator=generator, device=device).to(dtype) for _ in range(3))
        size = f"{tokens} x 768 {str(dtype).removeprefix('torch.')}"
        repeats = {"device": device, "pairs": 7 if quick else 15}
        exact = task_gram_reference(tuple(gradient.double() for gradient in gradients))
        torch.testing.assert_close(task_gram(gradients).double(), exact, atol=1e-6 * exact.max().item(), rtol=1e-5)
        torch.testing.assert_close(task_mix(gradients, weights_T), task_mix_reference(gradients, weights_T))
        result.append(
            compare(
                f"task_gram {size}",
                "plain PyTorch",
                lambda g=gradients: task_gram(g),
                lambda g=gradients: task_gram_reference(g),
                target=2.0,
                **repeats,
            )
        )
        result.append(
            compare(
                f"task_mix {size}",
                "plain PyTorch",
                lambda g=gradients: task_mix(g, weights_T),
                lambda g=gradients: task_mix_reference(g, weights_T),
                target=2.0,
                **repeats,
            )
        )
    return result
