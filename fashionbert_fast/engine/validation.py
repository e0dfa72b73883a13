"""Validation while training: losses and alignment accuracy on fixed held-out pairs, the best step so far, early stop.

A run with validation learns bit for bit what it learns without: nothing is drawn from a generator (masks and pairs are
functions of the seed, nothing drops), and no gradient is taken.

Shapes: T = 3 tasks.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch

from fashionbert_fast.config import HIGHEST
from fashionbert_fast.data.batch import Batch, StepCounts
from fashionbert_fast.data.config import ContrastiveConfig
from fashionbert_fast.data.packing import rounded_up
from fashionbert_fast.data.pairs import PairDataset
from fashionbert_fast.data.sampling import EpochPlan
from fashionbert_fast.distributed import all_reduce_sum, is_main
from fashionbert_fast.engine.build import Run
from fashionbert_fast.errors import InputError
from fashionbert_fast.kernels._library import IGNORED
from fashionbert_fast.model.config import TASKS
from fashionbert_fast.profiling import ranges

EPOCH = 0  # the one that fixed pairs and masks are drawn for


class HeldOutPairs(PairDataset):
    """``held_out[i]``: this rank's part of the i-th batch of fixed pairs of held-out products.

    Each product stands in a match and in a mismatch, whatever ``data.pairs``, so that guessing gives an accuracy of
    0.5; a mismatch is drawn as in training (``data.negatives``, never a twin). The pairs are cut into batches of as
    many as a training step's micro-batches have, the last one evenly. Every rank has as many batches, and none is
    empty: a forward has collectives in it, which all ranks must enter.
    """

    def __init__(self, training: PairDataset, rows: np.ndarray, most: int) -> None:
        config = replace(training.config, pairs="both", random_negative_epochs=0)
        size = min(training.micro_batch_size, 2 * len(rows))  # a split smaller than a batch will do
        super().__init__(
            training.store, training.titles, rows, config, seed=training.seed, micro_batch_size=size, steps=1,
            budget=training.budget, queries=training.queries, contrastive=_unmasked(training.contrastive),
        )  # fmt: skip
        plan = self.plan(EPOCH)
        self.fixed = EpochPlan(plan.text_rows[:most], plan.image_rows[:most], plan.is_match[:most])
        self.rank, self.world_size = training.rank, training.world_size
        self.global_batch = size * self.world_size
        self.steps = rounded_up(self.pairs, self.global_batch) // self.global_batch

    def _views(self, image_rows: np.ndarray, epoch: int) -> None:
        return None  # photos as they are

    @property
    def pairs(self) -> int:
        return len(self.fixed.text_rows)

    def __getitem__(self, step: int) -> Batch:
        first = step * self.global_batch
        left = min(self.global_batch, self.pairs - first)
        share = rounded_up(left, self.world_size) // self.world_size
        ends = [min(i * share, left) + first for i in range(self.world_size + 1)]
        spans = [slice(start, stop) for start, stop in pairwise(ends)]
        if spans[self.rank].start < spans[self.rank].stop:
            return self._collate(self.fixed, spans, EPOCH)
        spans[self.rank] = slice(first, first + 1)
        return _counting_for_nothing(self._collate(self.fixed, spans, EPOCH))


def _unmasked(contrastive: ContrastiveConfig) -> ContrastiveConfig:
    """The contrastive loss over the held-out pairs' products, as they are, where training has it at all."""
    if not contrastive.on:
        return contrastive
    weight = contrastive.weight or 1.0
    return replace(
        contrastive, weight=weight, first_steps=0, subcategory_steps=0, token_rate=0.0, patch_rate=0.0, mirror_rate=0.0
    )


def _counting_for_nothing(batch: Batch) -> Batch:
    """The batch with no row that any loss is taken of."""
    t = batch.targets
    nothing = t.mpm_row_K[:0]
    targets = replace(
        t, mlm_label_M=torch.full_like(t.mlm_label_M, IGNORED), mpm_row_K=nothing, mpm_target_K=nothing,
        tia_label_B=torch.full_like(t.tia_label_B, IGNORED), counts_T=torch.zeros_like(t.counts_T),
    )  # fmt: skip
    queries = batch.queries and batch.queries.map(torch.zeros_like)
    return replace(
        batch,
        targets=targets,
        queries=queries,
        contrastive=batch.contrastive and batch.contrastive.map(torch.zeros_like),
    )


@torch.no_grad()
def measure(run: Run, held_out: HeldOutPairs) -> dict:
    """The ``validation`` of a record: mean losses over all pairs, their sum by ``weighting.preference`` (which stays
    the same over a run, as adaptive weights do not) and ``queries.weight``, alignment accuracy, and how many pairs;
    in a run with queries their mean loss, how many find their item in their batch, and their number; in one with the
    contrastive loss the same of titles and photos that find each other. A collective."""
    T = len(TASKS)
    sums_T = torch.zeros(T, dtype=torch.float64, device=run.device)
    query_2, contrastive_2 = torch.zeros(2, 2, dtype=torch.float64, device=run.device)
    # rows of each task, right answers, queries, products
    counted = torch.zeros(T + 3, dtype=torch.float64, device=run.device)
    # Counts of one: the model's means are then sums over all ranks.
    ones = torch.ones(len(StepCounts._fields), device=run.device)
    run.engine.eval()
    for i in range(len(held_out)):
        batch = held_out[i].to(run.device)
        output = run.engine(batch, ones)
        sums_T += output.losses_T[:T]
        right = (output.logits_B2.argmax(1) == batch.targets.tia_label_B).sum()
        asked = products = torch.zeros_like(right)
        if batch.queries is not None:
            query_2 += output.query_2
            asked = batch.queries.asks_C.sum()
        if batch.contrastive is not None:
            contrastive_2 += output.contrastive_2
            products = batch.contrastive.live_C.sum()
        counted += torch.cat([batch.targets.counts_T, torch.stack([right, asked, products])])
    run.engine.train()
    *counts, right, asked, products = all_reduce_sum(counted).tolist()
    losses = [total / max(1.0, count) for total, count in zip(sums_T.tolist(), counts, strict=True)]
    preferred = zip(run.config.weighting.preference, losses, strict=True)
    result = {
        "losses": dict(zip(TASKS, losses, strict=True)),
        "loss": sum(factor * loss for factor, loss in preferred),
        "alignment_accuracy": right / held_out.pairs,
        "pairs": held_out.pairs,
    }
    if held_out.queries is not None:
        loss, accuracy = (query_2 / max(1.0, asked)).tolist()
        result |= {"query_loss": loss, "query_accuracy": accuracy, "queries": int(asked)}
        result["loss"] += run.config.queries.weight * loss
    if held_out.contrastive.on:
        loss, accuracy = (contrastive_2 / max(1.0, products)).tolist()
        result["losses"]["itc"], result["itc_accuracy"] = loss, accuracy
        result["loss"] += run.config.contrastive.weight * loss
    return result


def _held_out(run: Run) -> HeldOutPairs | None:
    """The pairs to validate on; None, with one line that says why, where there are none."""
    v, rows = run.config.validation, run.store.rows("validation")
    if v.every == 0:
        return None
    if run.config.data.split != "train":
        why = f"data.split {run.config.data.split} trains on the held-out products; set it to train"
    elif len(rows) == 0:
        why = f"{run.store.path} has no products of split 'validation'; prepare it with --holdout"
    else:
        return HeldOutPairs(run.dataset, rows, v.pairs)
    if v.keep_best is not None:
        raise InputError(f"validation.keep_best {v.keep_best}: {why}, or set validation.keep_best=null")
    if is_main():
        print(f"no validation while training: {why}", flush=True)
    return None


def _value(validation: dict, metric: str) -> float | None:
    return validation.get("losses", {}).get(metric, validation.get(metric))


class Validation:
    """Measures when it is due, and keeps in ``run.state`` which step is the best so far and how long that was ago.

    All ranks measure the same numbers, so all answer alike.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.config = run, run.config.validation
        self.held_out = _held_out(run)
        self.last: dict | None = None  # what was measured last
        if self.best is None:  # none yet, or none by this metric: whatever is validated next is the best so far
            run.state.best_step, run.state.best, run.state.stale = None, None, 0

    def due(self, step: int) -> bool:
        return self.held_out is not None and (step % self.config.every == 0 or step == self.run.config.train.steps)

    def __call__(self, step: int) -> dict:
        """Measure, and remember whether the step is the best so far. A collective."""
        assert self.held_out is not None  # else none is due
        with ranges.phase("validation"):
            self.last = measure(self.run, self.held_out)
        if self.config.keep_best is not None:
            state, value = self.run.state, _value(self.last, self.config.keep_best)
            if _better(self.config.keep_best, value, self.best):
                state.best_step, state.best, state.stale = step, self.last, 0
            elif self.best is not None:
                state.stale += 1
        return self.last

    @property
    def best(self) -> float | None:
        """The best value so far of ``validation.keep_best``, which may be another metric than the run began with."""
        metric, best = self.config.keep_best, self.run.state.best
        return None if metric is None or best is None else _value(best, metric)

    def is_best(self, step: int) -> bool:
        """Whether ``step``, which was validated last or not at all, is the best so far."""
        return self.run.state.best_step == step

    def wants_checkpoint(self, step: int) -> bool:
        """Whether ``step`` is the best so far, or the last of a run that stops early."""
        return self.exhausted or self.is_best(step)

    @property
    def exhausted(self) -> bool:
        """Whether ``validation.patience`` is at its end."""
        return 0 < self.config.patience <= self.run.state.stale

    def tell(self, step: int) -> None:
        """Say in one line why the run ends after ``step``."""
        if is_main():
            state = self.run.state
            print(
                f"stopped early at step {step} of {self.run.config.train.steps}: {state.stale} validations without a "
                f"better {self.config.keep_best} than {self.best:.4f} of step {state.best_step}; to train on, --resume "
                f"with validation.patience=0",
                flush=True,
            )


def _better(metric: str, value: float | None, best: float | None) -> bool:
    if value is None or not math.isfinite(value):
        return False
    return best is None or (value > best if metric in HIGHEST else value < best)
