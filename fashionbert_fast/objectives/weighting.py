"""From the sums of three or four task losses to one loss to run backward on, the same on every rank.

`global_means` makes the losses of the *global* batch out of each rank's sums; `TaskWeighter` weights them:

- ``loss``, ``fixed``, ``uncertainty``, ``dwa``: the weights depend on the losses (or on nothing), so they multiply the
  losses.
- ``gradient``, ``min_norm``, ``imtl``, ``nash``, ``gradnorm``: the weights depend on the task gradients at the last
  hidden states (MGDA-UB, Sener & Koltun 2018). A gate there hands each head its own alias of the hidden states,
  receives the head gradients together in the one backward, all-reduces their Gram matrix, solves for w and passes on
  sum_i w_i g_i. So w scales what the encoder and the embeddings learn; each head's own parameters keep their unweighted
  gradient (times preference), as in MGDA. The tied decoder is one of the MLM head's parameters.

What outlives a step is `TaskWeighter.memory`, which checkpoints keep beside the optimizer's state, and the
log-variances of ``uncertainty``, parameters like any other.

Shapes: T tasks, in the order of `config.TASKS`; a fourth is the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from fashionbert_fast.distributed import all_reduce_sum, world_size
from fashionbert_fast.errors import InputError
from fashionbert_fast.kernels import adaptive_loss, min_norm_weights
from fashionbert_fast.kernels.task_gradients import task_gram, task_mix
from fashionbert_fast.model.config import AT_GATE, NORMALISABLE, TASKS, TaskWeighting
from fashionbert_fast.objectives.gram_weights import equal_projections, nash_bargain


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
    float32, what each loss was multiplied by, preference included; where the method solves at the gate
    (`config.AT_GATE`), known once the backward has run. cotangent: the gradient that arrived at the loss there: the
    loss scale, by which the gate divides again.
    """

    own_T: torch.Tensor | None = None
    losses_T: torch.Tensor | None = None
    weights_T: torch.Tensor | None = None
    cotangent: torch.Tensor | None = None


def _first_memory(method: str, T: int) -> dict[str, torch.Tensor]:
    """What a method knows before the first batch."""
    if method == "dwa":
        return {name: torch.zeros(T) for name in ("sums", "last", "before")} | {
            name: torch.zeros(()) for name in ("counted", "seen")
        }
    return {"first": torch.zeros(T)} if method == "gradnorm" else {}


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
        return tuple(hidden.view_as(hidden) for _ in weighter.tasks)

    @staticmethod
    def backward(ctx, *gradients):
        weights_T = ctx.weighter.solve(gradients, ctx.report)
        return task_mix(gradients, weights_T), None, None


class TaskWeighter(nn.Module):
    """Applies a `TaskWeighting`; what it did to one batch stands in that batch's `WeightingReport`.

    Args:
        tasks: names of the T tasks, 3 or 4.
        factor: that of a task for which ``weighting.preference`` has none; of more than T it has, the first T count.

    Raises:
        InputError: ``weighting.floor`` leaves nothing to share among so many tasks.
    """

    def __init__(self, weighting: TaskWeighting, tasks: Sequence[str] = TASKS, factor: float = 1.0) -> None:
        super().__init__()
        self.weighting, self.tasks, T = weighting, tuple(tasks), len(tasks)
        if weighting.floor * T > 1:
            raise InputError(f"weighting.floor {weighting.floor:g}: {T} tasks can have 1/{T} each at most; lower it")
        # Not buffers: a bf16 engine would round them.
        self.preference_T = torch.tensor([*weighting.preference, factor][:T], dtype=torch.float32)
        self.memory: dict[str, torch.Tensor] = _first_memory(weighting.method, T)
        if weighting.method == "uncertainty":
            self.log_variance_T = nn.Parameter(torch.zeros(T))

    @property
    def at_gate(self) -> bool:
        return self.weighting.method in AT_GATE

    def gate(self, hidden: torch.Tensor, report: WeightingReport) -> tuple[torch.Tensor, ...]:
        """The hidden states for each task's head: aliases of one tensor, through the gate where the method needs it."""
        if self.at_gate and torch.is_grad_enabled() and hidden.requires_grad:
            return _Gate.apply(hidden, self, report)
        return (hidden,) * len(self.tasks)

    def forward(self, losses_T: torch.Tensor, report: WeightingReport) -> torch.Tensor:
        """The scalar to run backward on; ``report`` is the one that `gate` was given, and is filled in."""
        report.losses_T = losses_T.detach()
        preference_T = self._preference(losses_T)
        self._to(losses_T.device)
        if self.weighting.method == "gradnorm" and self.training and torch.is_grad_enabled():
            self._remember_first(report.losses_T)
        if self.at_gate:
            return _RecordCotangent.apply((preference_T * losses_T).sum(), report)
        if self.weighting.method == "loss":
            loss, weights_T = adaptive_loss(
                preference_T * losses_T, alpha=self.weighting.alpha, detach_weights=self.weighting.detach_weights
            )
            report.weights_T = (weights_T * preference_T).detach()
            return loss
        factor_T, offset = self._of_losses(preference_T, report.losses_T)
        report.weights_T = factor_T.detach()
        return (factor_T * losses_T).sum() + offset

    def alone(self, like_T: torch.Tensor) -> torch.Tensor:
        """The weights (T,) float32 of a batch that has the fourth task alone: 1 for it, 0 for the others."""
        return torch.arange(len(like_T), device=like_T.device).eq(len(TASKS)).float()

    def _of_losses(
        self, preference_T: torch.Tensor, losses_T: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | float]:
        """What multiplies the losses, (T,) float32, and what is added to their sum: of fixed, uncertainty and dwa.

        uncertainty (Kendall, Gal & Cipolla, CVPR 2018, for likelihoods of classes): L exp(-s) + s / 2, s the log of a
        variance that is learned; at rest the factor is 1 / (2 L). Times preference.
        """
        if self.weighting.method == "uncertainty":
            log_variance_T = self.log_variance_T.float()
            return preference_T * torch.exp(-log_variance_T), (preference_T * log_variance_T).sum() / 2
        if self.weighting.method == "dwa":
            return preference_T * self._dynamic_average(losses_T), 0.0
        return preference_T, 0.0

    def _dynamic_average(self, losses_T: torch.Tensor) -> torch.Tensor:
        """(T,) weights by how fast losses fell (Liu, Johns & Davison, CVPR 2019): T softmax(r / temperature), r the
        ratio of the last window's mean loss to that of the window before; 1 of the first two, and of a loss of 0.
        Then takes ``losses_T`` in, if they are trained on; a batch with one that is not finite counts for nothing."""
        m = self.memory
        ratio_T = torch.where(m["before"] > 0, m["last"] / m["before"].clamp_min(1e-30), 1.0)
        weights_T = len(self.tasks) * torch.softmax(ratio_T / self.weighting.temperature, dim=0)
        if self.training and torch.is_grad_enabled():
            finite = losses_T.isfinite().all()
            counted = m["counted"] + finite
            sums_T = m["sums"] + torch.where(finite, losses_T, 0.0)
            seen = m["seen"] + 1
            ends = seen == self.weighting.window
            mean_T = sums_T / counted.clamp_min(1)
            self.memory = {
                "sums": sums_T * ~ends,
                "counted": counted * ~ends,
                "seen": seen * ~ends,
                "last": torch.where(ends, mean_T, m["last"]),
                "before": torch.where(ends, m["last"], m["before"]),
            }
        return weights_T

    def _remember_first(self, losses_T: torch.Tensor) -> None:
        """The first loss of each task that is neither 0 nor infinite: what gradnorm takes later ones relative to."""
        first_T = self.memory["first"]
        self.memory["first"] = torch.where((first_T == 0) & losses_T.isfinite(), losses_T, first_T)

    def _preference(self, like: torch.Tensor) -> torch.Tensor:
        self.preference_T = self.preference_T.to(like.device)  # copied once, then already there
        return self.preference_T

    def _to(self, device: torch.device) -> None:
        for name, tensor in self.memory.items():
            if tensor.device != device:
                self.memory[name] = tensor.to(device)

    def saved_memory(self) -> dict[str, list[float]]:
        """`memory` as numbers for a checkpoint: it waits for the device."""
        return {name: tensor.flatten().tolist() for name, tensor in self.memory.items()}

    def restore_memory(self, saved: dict[str, list[float]]) -> None:
        """Go on from `saved_memory`; of another method nothing is taken. RuntimeError where it is of other tasks."""
        if saved.keys() == self.memory.keys():
            self.memory = {name: torch.tensor(saved[name]).view(kept.shape) for name, kept in self.memory.items()}

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
        if self.weighting.method in NORMALISABLE:
            weights_T = self._among_live(gram_TT, live_T)
        else:
            weights_T = self._of_cosines(gram_TT.double(), live_T, report.losses_T).float()
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
        T = len(self.tasks)
        solved = [F.pad(self._weights_of(sorted_TT[:n, :n]), (0, T - n)) for n in range(1, T + 1)]
        of_numbers = torch.stack([torch.zeros_like(solved[0]), *solved])
        weights_T = of_numbers.index_select(0, live_T.sum(0, keepdim=True))[0]
        return torch.zeros_like(weights_T).index_copy(0, order_T, weights_T)

    def _weights_of(self, gram_nn: torch.Tensor) -> torch.Tensor:
        """The method's weights (n,) of n tasks, from the Gram matrix of their gradients."""
        if self.weighting.method == "min_norm":
            return min_norm_weights(gram_nn)
        norms_n = gram_nn.diagonal().clamp_min(0).sqrt()
        alpha = self.weighting.alpha * len(self.tasks) / len(norms_n)  # alpha T stays what it is: else weights below 0
        return adaptive_loss(norms_n, alpha=alpha)[1]  # the closed form in one launch

    def _of_cosines(self, gram_TT: torch.Tensor, live_T: torch.Tensor, losses_T: torch.Tensor) -> torch.Tensor:
        """(T,) float64 weights of the methods that do not see how long gradients are: how long each task's part of the
        mix is to be, over its gradient's length. Their sizes sum to 1; 0 of tasks that do not live.

        Preference is a share here, of projections (imtl), of the bargain (nash), of norms (gradnorm): the factor that
        it is of losses would be divided out.
        """
        inverse_T = live_T / gram_TT.diagonal().clamp_min(1e-300).sqrt()
        # A task that does not live is at right angles to all: it changes nothing for the others.
        cosine_TT = gram_TT * inverse_T[:, None] * inverse_T + torch.diag((~live_T).double())
        share_T = self._preference(gram_TT).double() * live_T
        if self.weighting.method == "imtl":
            length_T = equal_projections(cosine_TT, share_T)
        elif self.weighting.method == "nash":
            length_T = nash_bargain(cosine_TT, share_T)
        else:  # GradNorm (Chen et al., ICML 2018): norms as the shares of what is left of each first loss, to a power
            length_T = share_T * (losses_T / self.memory["first"].clamp_min(1e-30)).double() ** self.weighting.asymmetry
        weights_T = length_T * inverse_T
        # Not by their sum, as IMTL-G has it: with negative ones that may be near 0, or below and turn the step round.
        return weights_T / weights_T.abs().sum().clamp_min(1e-300)

    def _normaliser(self, gram_TT: torch.Tensor, live_T: torch.Tensor, report: WeightingReport) -> torch.Tensor | None:
        """Factor each task gradient is scaled by before the solve, all scaled alike so that the mean of the live ones'
        stays 1, and 0 for the others; None for 1."""
        if self.weighting.normalise == "none":
            return None
        assert report.losses_T is not None
        size_T = gram_TT.diagonal().clamp_min(0).sqrt() if self.weighting.normalise == "norm" else report.losses_T
        scale_T = live_T / size_T.clamp_min(1e-12)
        return scale_T * live_T.sum() / scale_T.sum().clamp_min(1e-12)
