"""What the tests of `linear_patch_kld` and `linear_cross_entropy` share: a loss with its gradients, its errors."""

from __future__ import annotations

import torch
from row_cases import allowed_error, at_thread_counts, check_as_exact, relative_errors, same_bits


def loss_and_gradients(function, parameters, *rest, scale: float = 3.0):
    """Loss and gradients of ``parameters``, the incoming gradient being ``scale``."""
    parameters = [p.detach().requires_grad_() for p in parameters]
    loss = function(*parameters, *rest)
    return [loss.detach(), *torch.autograd.grad(loss * scale, parameters)]


def assert_errs_at_most_twice(results: list[tuple[list, list, list]], floor: float = 0.0) -> None:
    """``results``: (ours, plain PyTorch's, exact) a case. Errors are in units of the largest exact value, of 1e-3 if
    that is less: there float32 rounds by more than a thousandth of it."""
    terms = max(max(gradient.shape) for mine, _, _ in results for gradient in mine[1:])
    allowed = allowed_error(results[0][0][1].dtype, terms)
    ours = [relative_errors(mine, exact, 1e-3) for mine, _, exact in results]
    check_as_exact(ours, [relative_errors(plain, exact, 1e-3) for _, plain, exact in results], floor, allowed=allowed)


def assert_same_bits_where_products_are_exact(operator, parameters, *rest) -> None:
    """Loss and residual on any number of threads. The products are the library's, which may sum in another order on
    another number of them: of small integers every order gives the same."""
    parameters = [p.mul(2).round().clamp(-4, 4) for p in parameters]
    assert same_bits(at_thread_counts(lambda: operator(*parameters, *rest, True)))
