"""An optimizer step: batch -> model.forward -> engine.backward -> engine.step. It reads nothing from the device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fashionbert_fast.data.batch import Batch, StepCounts
from fashionbert_fast.distributed import all_reduce_sum
from fashionbert_fast.engine.build import Run, seed_dropout
from fashionbert_fast.profiling import ranges


def _copied_ahead(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A small host tensor on ``device``; to a GPU from pinned memory, because a copy from any other waits for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@dataclass
class StepReport:
    """What an optimizer step found, on the device: nothing of it is read before a step is logged.

    losses_T: (T,) float32 mean losses over the global batch. weights_T: (T,) float32 task weights. Both are means over
    the micro-batches, each of which is weighted by its own. own_T: (T,) float32 this rank's sums of losses.
    counts: (8,) float32, see `StepCounts`. norm: () of the gradient; not finite where the step was passed over.
    query_2: (2,) float32 mean loss of the queries and share that found their item; zeros where there are none.
    contrastive_2: the same of the contrastive loss. lr: the learning rate of the step.
    """

    losses_T: torch.Tensor
    weights_T: torch.Tensor
    own_T: torch.Tensor
    counts: torch.Tensor
    norm: torch.Tensor
    query_2: torch.Tensor
    contrastive_2: torch.Tensor
    lr: float


def train_step(
    run: Run, micro_batches: list[Batch], step: int, counts: torch.Tensor | None = None
) -> StepReport:  # fmt: skip
    """Optimizer step ``step``, from 1: exactly one backward a micro-batch, every head in its loss.

    counts: (8,) float32 on the device, of this rank's micro-batches, see `StepCounts`; None: they are on the host.
    """
    lr = run.engine.get_lr()[0]  # read now: the schedule moves on with the step
    if counts is None:
        counts = _copied_ahead(StepCounts.of(micro_batches), run.device)
    with ranges.phase("all-reduce"):
        counts = all_reduce_sum(counts)
    losses_T, weights_T, own_T = torch.zeros(3, len(run.tasks), device=run.device)
    query_2, contrastive_2 = torch.zeros(2, 2, device=run.device)
    for i, batch in enumerate(micro_batches):
        seed_dropout(run.device, run.config.train.seed, step, i, run.rank)
        with ranges.phase("host to device"):
            batch = batch.to(run.device, non_blocking=True)
        with ranges.phase("forward"):
            output = run.engine(batch, counts, len(micro_batches))
        with ranges.backward():
            run.engine.backward(poison_nonfinite(output.loss))
        with ranges.phase("optimizer"):
            run.engine.step()
        with ranges.phase("metrics"):
            losses_T += output.losses_T / len(micro_batches)
            weights_T += output.report.weights_T / len(micro_batches)
            own_T += output.report.own_T
            if output.query_2 is not None:
                query_2 += output.query_2 / len(micro_batches)
            if output.contrastive_2 is not None:
                contrastive_2 += output.contrastive_2 / len(micro_batches)
    norm = gradient_norm(run.engine, run.device)
    return StepReport(losses_T, weights_T, own_T, counts, norm, query_2, contrastive_2, lr)


def poison_nonfinite(loss: torch.Tensor) -> torch.Tensor:
    """The loss, bit for bit; where it is not finite its gradient is not either, so that the norm of a step's gradient
    alone tells whether the step stands."""
    return loss * (1 + 0 * loss.detach())


def gradient_norm(engine, device: torch.device) -> torch.Tensor:
    """() of the step just taken; not finite where it was passed over. Waits for no device."""
    norm = math.inf if getattr(engine.optimizer, "overflow", False) else engine.get_global_grad_norm()
    return norm if isinstance(norm, torch.Tensor) else torch.full((), norm or 0.0, device=device)
