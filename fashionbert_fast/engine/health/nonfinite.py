"""Steps whose numbers are not finite are passed over and counted; several in a row stop the run, naming step, task,
rank and samples, before anything of it is saved.

Shapes: T = 3 tasks.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.distributed as dist

from fashionbert_fast.engine.build import Run
from fashionbert_fast.engine.step import StepReport
from fashionbert_fast.errors import TrainingStopped

MOST_NAMED = 5  # product ids in a message
REMEDY = "start again with a lower train.lr or a longer train.warmup_ratio; earlier checkpoints stay"


class NonFiniteMonitor:
    """Counts on the device the steps that were passed over, and remembers the first of ``train.max_skipped_steps`` in a
    row, so that no step waits.

    All ranks see the same losses, weights and norms, so all count the same and stop together. With float16 a gradient
    alone stops nothing: there DeepSpeed passes steps over to find its loss scale.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.most = run, run.config.train.max_skipped_steps
        numbers = torch.zeros(3 + 1 + 3 * len(run.tasks) + 1, dtype=torch.float64, device=run.device)
        # Skipped steps in all, those of them in a row, whether that row was too long; its first step with that one's
        # losses, task weights, this rank's own sums, and norm.
        self.total, self.row, self.reached, self.first = numbers[0], numbers[1], numbers[2] > 0, numbers[3:]
        self.total = self.total + run.state.skipped

    def add(self, step: int, report: StepReport) -> None:
        """Take note of ``step`` (from 1) once it is taken or passed over."""
        values = torch.cat([report.losses_T, report.weights_T, report.own_T, report.norm.reshape(1)]).double()
        finite = values.isfinite()
        skipped = ~finite.all()
        wrong = ~finite[:-1].all() if self.run.config.train.precision == "fp16" else skipped
        self.total = self.total + skipped
        self.row = (self.row + 1) * wrong
        begins = (self.row == 1) & ~self.reached
        self.first = torch.where(begins, torch.cat([values.new_full((1,), step), values]), self.first)
        self.reached = self.reached | (self.row >= self.most)

    def has_unreported(self) -> bool:
        """Whether a step was skipped that no record tells of. Reads the device."""
        return int(self.total) > self.run.state.skipped

    def num_skipped(self) -> int:
        """Steps of the run that were passed over, for a record. Reads the device."""
        self.run.state.skipped = int(self.total)
        return self.run.state.skipped

    def stop_reason(self) -> str | None:
        """Why training must stop: so many steps in a row were passed over. A collective."""
        if not self.reached:
            return None
        step, *numbers = self.first.tolist()
        tasks, T = self.run.tasks, len(self.run.tasks)
        losses, weights, own = (numbers[i : i + T] for i in range(0, 3 * T, T))
        ranks = self._ranks(own)
        named = f"step {int(step)}" + (f", the first of {self.most} in a row" if self.most > 1 else "")
        where = f" on rank {', '.join(map(str, ranks))}" if 0 < len(ranks) < self.run.world_size else ""
        for what, of_tasks in (("loss", losses), ("task weight", weights)):
            wrong = [task for task, number in zip(tasks, of_tasks, strict=True) if not math.isfinite(number)]
            if wrong:
                listed = ", ".join(f"{task} {number:.4g}" for task, number in zip(tasks, of_tasks, strict=True))
                what = f"{what} of {', '.join(wrong)} is not finite{where} ({listed})"
                return f"{named}: {what}; {self._samples(int(step), ranks)}"
        return f"{named}: gradient norm is not finite ({numbers[-1]}); {self._samples(int(step), ranks)}"

    def _ranks(self, own: list[float]) -> list[int]:
        """Those whose own rows gave a loss that is not finite; all where none did."""
        everyone: list = [not all(map(math.isfinite, own))]
        if self.run.world_size > 1:
            everyone = everyone * self.run.world_size
            dist.all_gather_object(everyone, everyone[0])
        return [rank for rank, wrong in enumerate(everyone) if wrong] or list(range(self.run.world_size))

    def _samples(self, step: int, ranks: list[int]) -> str:
        """Which products to look at, and the remedy: the batch is drawn again, being a function of its step."""
        store = self.run.store
        text_rows, image_rows = self.run.dataset.global_rows(step - 1, ranks)
        rows = np.union1d(text_rows, image_rows)
        views = range(store.manifest.views)
        broken = [
            row for row in np.unique(image_rows) if not store.features([row] * len(views), views).isfinite().all()
        ]
        if broken:
            return f"{len(broken)} of its {len(rows)} products have features in {store.path} that are not finite: " + (
                f"{self._named(broken)}; prepare the store again"
            )
        return f"its {len(rows)} products are {self._named(rows)}; {REMEDY}"

    def _named(self, rows) -> str:
        ids = [self.run.store.ids[row] for row in rows[:MOST_NAMED]]
        return ", ".join(ids) + (", ..." if len(rows) > MOST_NAMED else "")


def require_finite(weights: dict[str, torch.Tensor], step: int) -> None:
    """TrainingStopped naming the first of ``weights`` that is not finite."""
    # A sum is one pass, and not finite where a part is not; `isfinite` takes several.
    doubtful = {name: weight for name, weight in weights.items() if not weight.sum().isfinite()}
    wrong = [name for name, weight in doubtful.items() if not weight.isfinite().all()]
    if wrong:
        more = f"{wrong[0]} and {len(wrong) - 1} more parameters are"
        raise TrainingStopped(f"step {step}: {more} not finite, so no checkpoint was written; {REMEDY}")
