"""A run whose numbers are no longer finite stops, naming step, task and samples, before anything of it is saved.

Shapes: T = 3 tasks.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from fashionbert_fast.distributed import first_of_all_ranks
from fashionbert_fast.errors import TrainingStopped
from fashionbert_fast.model.config import TASKS

if TYPE_CHECKING:
    from fashionbert_fast.engine.build import Run

MOST_NAMED = 5  # product ids in a message
REMEDY = "start again with a lower train.lr or a longer train.warmup_ratio; earlier checkpoints stay"


class Watch:
    """Remembers on the device the first step whose losses or task weights were not finite, so that no step waits.

    All ranks see the same losses and weights, so all find the same and stop together.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.first = torch.zeros(1 + 2 * len(TASKS), dtype=torch.float64, device=run.device)  # step, losses, weights

    def add(self, step: int, losses_T: torch.Tensor, weights_T: torch.Tensor) -> None:
        """Take note of ``step`` (from 1) once its backward has run."""
        values = torch.cat([losses_T, weights_T]).double()
        seen = (self.first[0] > 0) | values.isfinite().all()
        self.first = torch.where(seen, self.first, torch.cat([values.new_full((1,), step), values]))

    def found(self) -> bool:
        """Whether such a step was met. Reads the device."""
        return bool(self.first[0] > 0)

    def complaint(self, record: dict) -> str | None:
        """Why training must stop: such a step was met, or the gradient of the logged step is not finite."""
        step, *values = self.first.tolist()
        losses, weights = values[: len(TASKS)], values[len(TASKS) :]
        for what, numbers in (("loss", losses), ("task weight", weights)):
            wrong = [task for task, number in zip(TASKS, numbers, strict=True) if not math.isfinite(number)]
            if wrong:
                listed = ", ".join(f"{task} {number:.4g}" for task, number in zip(TASKS, numbers, strict=True))
                step = int(step)
                return f"step {step}: {what} of {', '.join(wrong)} is not finite ({listed}); {self._samples(step)}"
        norm = record["grad_norm"]
        # With float16 some are not: DeepSpeed passes such a step over and lowers its loss scale.
        if norm is not None and not math.isfinite(norm) and self.run.config.train.precision != "fp16":
            step = record["step"]
            return f"step {step}: gradient norm is not finite ({norm}); {self._samples(step)}"
        return None

    def _samples(self, step: int) -> str:
        """Which products to look at, and the remedy: the batch is drawn again, being a function of its step."""
        store = self.run.store
        text_rows, image_rows = self.run.dataset.global_rows(step - 1)
        rows = np.union1d(text_rows, image_rows)
        broken = [row for row in np.unique(image_rows) if not store.features([row]).isfinite().all()]
        if broken:
            return f"{len(broken)} of its {len(rows)} products have features in {store.path} that are not finite: " + (
                f"{self._named(broken)}; prepare the store again"
            )
        return f"its {len(rows)} products are {self._named(rows)}; {REMEDY}"

    def _named(self, rows) -> str:
        ids = [self.run.store.ids[row] for row in rows[:MOST_NAMED]]
        return ", ".join(ids) + (", ..." if len(rows) > MOST_NAMED else "")


def require_finite(weights: dict[str, torch.Tensor], step: int) -> None:
    """TrainingStopped naming the first of ``weights`` that is not finite on any rank; a collective."""
    wrong = [name for name, weight in weights.items() if not weight.isfinite().all()]
    found = first_of_all_ranks(f"{wrong[0]} and {len(wrong) - 1} more parameters are" if wrong else None)
    if found:
        raise TrainingStopped(f"step {step}: {found} not finite, so no checkpoint was written; {REMEDY}")
