"""From three sums of task losses to one loss to run backward on, the same on every rank.

`global_means` makes the three losses of the *global* batch out of each rank's sums; `TaskWeighter` weights them:

- ``loss``, ``fixed``: the weights depend on the losses (or on nothing), so they multiply the losses.
- ``gradient``, ``min_norm``: the weights depend on the three task gradients at the last hidden states (MGDA-UB,
  Sener & Koltun 2018). A gate there hands each head its own alias of the hidden states, receives the three head
  gradients together in the one backward, all-reduces their Gram matrix, solves for w and passes on sum_i w_i g_i. So w
  scales what the encoder and the embeddings learn; each head's own parameters keep their unweighted gradient (times
  preference), as in MGDA. The tied decoder is one of the MLM head's parameters.

Shapes: T = 3 tasks in the order of `config.TASKS`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from fashionbert_fast.distributed import all_reduce_sum, world_size
from fashionbert_fast.kernels import adaptive_loss, min_norm_weights
from fashionbert_fast.kernels.task_gradients import task_gram, task_mix
from fashionbert_fast.model.config import TASKS, TaskWeighting


class _GlobalMeans(torch.autograd.Function):
    @staticmethod
    def forward(ctx, sums_T, counts_T, micro_batches):
        ctx.scale_T = micro_batches / counts_T.clamp_min(1)
        return all_reduce_sum(sums_T.clone()) * ctx.scale_T

    @staticmethod
    def backward(ctx, grad_T):
        # The engine averages gradients over ranks; times the world size, that average is the global batch's gradient.
        return grad_T * ctx.scale_T * world_size(), None, None


def global_means(sums_T: torch.Tensor, counts_T: torch.Tensor, micro_batches: int = 1) -> torch.Tensor:
    """Mean task losses over all ranks, (T,) float32.

    Args:
        sums_T: this rank's sums of row losses, float32.
        counts_T: rows per task of the whole optimizer step, over all ranks and micro-batches (float32): the masked
            means are normalised by them, so that a rank with few masked rows does not count double.
        micro_batches: micro-batches an optimizer step; the mean over them of the result is the step's loss.
    """
    return _GlobalMeans.apply(sums_T, counts_T, micro_batches)


@dataclass
class WeightingReport:
    """What one forward and its backward found, detached.

    own_T: (T,) float32 this rank's sums of row losses. losses_T: (T,) float32 global mean losses. weights_T: (T,)
    float32, what each loss was multiplied by, preference included; where the method solves at the gate (gradient,
    min_norm), known once the backward has run. cotangent: the gradient that arrived at the loss there: the loss scale,
    by which the gate divides again.
    """

    own_T: torch.Tensor | None = None
    losses_T: torch.Tensor | None = None
    weights_T: torch.Tensor | None = None
    cotangent: torch.Tensor | None = None


class _RecordCotangent(torch.autograd.Function):
    """Identity that notes the gradient arriving at the loss."""

    @staticmethod
    def forward(ctx, loss, report):
        ctx.report = report
        return loss.clone()

    @staticmethod
    def backward(ctx, grad_loss):
        ctx.report.cotangent = grad_loss
        return grad_loss, None


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weighter, report):
        ctx.weighter, ctx.report = weighter, report
        return tuple(hidden.view_as(hidden) for _ in TASKS)

    @staticmethod
    def backward(ctx, *gradients):
        weights_T = ctx.weighter.solve(gradients, ctx.report)
        return task_mix(gradients, weights_T), None, None


class TaskWeighter(nn.Module):
    """Applies a `TaskWeighting`; what it did to one batch stands in that batch's `WeightingReport`."""

    def __init__(self, weighting: TaskWeighting) -> None:
        super().__init__()
        self.weighting = weighting
        # Not a buffer: a bf16 engine would round it.
        self.preference_T = torch.tensor(weighting.preference, dtype=torch.float32)

    @property
    def at_gate(self) -> bool:
        return self.weighting.method in ("gradient", "min_norm")

    def gate(self, hidden: torch.Tensor, report: WeightingReport) -> tuple[torch.Tensor, ...]:
        """The hidden states for each task's head: aliases of one tensor, through the gate where the method needs it."""
        if self.at_gate and torch.is_grad_enabled() and hidden.requires_grad:
            return _Gate.apply(hidden, self, report)
        return (hidden,) * len(TASKS)

    def forward(self, losses_T: torch.Tensor, report: WeightingReport) -> torch.Tensor:
        """The scalar to run backward on; ``report`` is the one that `gate` was given, and is filled in."""
        report.losses_T = losses_T.detach()
        preference_T = self._preference(losses_T)
        if self.weighting.method == "fixed":
            report.weights_T = preference_T
            return (preference_T * losses_T).sum()
        if self.at_gate:
            return _RecordCotangent.apply((preference_T * losses_T).sum(), report)
        loss, weights_T = adaptive_loss(
            preference_T * losses_T, alpha=self.weighting.alpha, detach_weights=self.weighting.detach_weights
        )
        report.weights_T = (weights_T * preference_T).detach()
        return loss

    def _preference(self, like: torch.Tensor) -> torch.Tensor:
        self.preference_T = self.preference_T.to(like.device)  # copied once, then already there
        return self.preference_T

    def solve(self, gradients: tuple[torch.Tensor, ...], report: WeightingReport) -> torch.Tensor:
        """(T,) float32 weights of the task gradients of the global batch, bitwise equal on all ranks.

        A task whose gradient is exactly zero (preference 0, nothing masked) takes no part and gets 0: for `min_norm` it
        would be the point of smallest norm, all by itself, and dividing by its norm would leave nothing of the others.
        """
        assert report.cotangent is not None and report.losses_T is not None  # the backward began at the loss
        gram_TT = all_reduce_sum(task_gram(gradients)) / (report.cotangent.float() * world_size()) ** 2
        live_T = gram_TT.diagonal() != 0
        scale_T = self._normaliser(gram_TT, live_T, report)
        if scale_T is not None:
            gram_TT = gram_TT * scale_T[:, None] * scale_T
        weights_T = self._among_live(gram_TT, live_T)
        if self.weighting.floor:
            least_T = self.weighting.floor * live_T
            weights_T = least_T + (1 - least_T.sum()) * weights_T
        if scale_T is not None:
            weights_T = (weights_T * scale_T).float()
        report.weights_T = weights_T * self._preference(weights_T)
        return weights_T

    def _among_live(self, gram_TT: torch.Tensor, live_T: torch.Tensor) -> torch.Tensor:
        """(T,) weights that solve for the live tasks alone and sum to 1; 0 for the others, all 0 where none lives.

        How many live is known on the device only: it is solved for each number, the live tasks first, and one taken.
        """
        order_T = live_T.int().argsort(descending=True, stable=True)
        sorted_TT = gram_TT.index_select(0, order_T).index_select(1, order_T)
        tasks = len(TASKS)
        solved = [F.pad(self._weights_of(sorted_TT[:n, :n]), (0, tasks - n)) for n in range(1, tasks + 1)]
        of_numbers = torch.stack([torch.zeros_like(solved[0]), *solved])
        weights_T = of_numbers.index_select(0, live_T.sum(0, keepdim=True))[0]
        return torch.zeros_like(weights_T).index_copy(0, order_T, weights_T)

    def _weights_of(self, gram_nn: torch.Tensor) -> torch.Tensor:
        """The method's weights (n,) of n tasks, from the Gram matrix of their gradients."""
        if self.weighting.method == "min_norm":
            return min_norm_weights(gram_nn)
        norms_n = gram_nn.diagonal().clamp_min(0).sqrt()
        alpha = self.weighting.alpha * len(TASKS) / len(norms_n)  # alpha T stays what it is: else weights below 0
        return adaptive_loss(norms_n, alpha=alpha)[1]  # the closed form in one launch

    def _normaliser(self, gram_TT: torch.Tensor, live_T: torch.Tensor, report: WeightingReport) -> torch.Tensor | None:
        """Factor each task gradient is scaled by before the solve, all scaled alike so that the mean of the live ones'
        stays 1, and 0 for the others; None for 1."""
        if self.weighting.normalise == "none":
            return None
        assert report.losses_T is not None
        size_T = gram_TT.diagonal().clamp_min(0).sqrt() if self.weighting.normalise == "norm" else report.losses_T
        scale_T = live_T / size_T.clamp_min(1e-12)
        return scale_T * live_T.sum() / scale_T.sum().clamp_min(1e-12)
