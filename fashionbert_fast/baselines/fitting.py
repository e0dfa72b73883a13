"""How systems are fitted: batches of training products, a budget, the epoch chosen on validation lists.

Shapes: N rows of a store, B products of a batch.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fashionbert_fast.baselines.system import Baseline, Scorer
from fashionbert_fast.errors import InputError
from fashionbert_fast.evaluation.ranking.protocols import DEFAULT_CANDIDATES, candidate_lists, score_lists
from fashionbert_fast.evaluation.ranking.ranks import RECALLS
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.progress import progress_bar

QUERIES = 300  # of the lists that an epoch is chosen by
WARM_UP = 0.05  # share of the budget in which learning rates rise; they fall to 0 over the rest
CLIP, WEIGHT_DECAY = 1.0, 0.01


@dataclass(frozen=True)
class Budget:
    """How long to fit: seconds of the clock since it was ``started``, reading the store and measuring on the validation
    lists included, or epochs; one of them, or neither: as many epochs as the system has by itself."""

    seconds: float | None = None
    epochs: int | None = None
    started: float = field(default_factory=time.perf_counter)

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    def __post_init__(self) -> None:
        if self.seconds is not None and not 0 < self.seconds < np.inf:
            raise InputError(f"--seconds: {self.seconds} is no time to fit in; give more than 0")
        if self.epochs is not None and self.epochs < 1:
            raise InputError(f"--epochs: {self.epochs} is too few; give 1 or more")
        if self.seconds is not None and self.epochs is not None:
            raise InputError("--epochs: --seconds is given as well; leave one out")


class Validation:
    """Lists of 1 + 100 among the validation products, drawn by the seed, as protocol "fashionbert" draws them."""

    def __init__(self, store: FeatureStore, rows: np.ndarray, seed: int) -> None:
        self.store, self.rows = store, rows
        self.lists = candidate_lists(
            store, rows, protocol="fashionbert", queries=QUERIES, candidates=DEFAULT_CANDIDATES, seed=seed
        )

    def recall(self, score: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> float:
        """The mean of R@1, R@5 and R@10 in both directions, what SCAN and its successors choose by (their sum)."""
        ranks = score_lists(self.lists, self.rows, score).ranks().values()
        return float(np.mean([of.recall(k) for of in ranks for k in RECALLS]))

    def scores(self, score: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
        """Of all candidates of the lists, in both directions, one after another."""
        scored = score_lists(self.lists, self.rows, score)
        found = np.concatenate([scored.text_to_image_QC.ravel(), scored.image_to_text_QC.ravel()])
        return found[np.isfinite(found)]

    def of(self, system: Baseline) -> float:
        return self.recall(Scorer(system, self.store).score)


@dataclass
class Training:
    """A system to train. loss: of the products of a batch, int64 rows, and the epoch (from 0), a scalar.

    lr: of what is new. core_lr: of a pre-trained BERT's layers.
    """

    system: Baseline
    loss: Callable[[np.ndarray, int], torch.Tensor]
    rows: np.ndarray
    validation: Validation
    seed: int
    budget: Budget
    epochs: int  # where the budget names none
    batch_size: int = 128
    lr: float = 1e-3
    core_lr: float = 1e-4

    def run(self) -> dict[str, Any]:
        """Train; the system then has the weights of its best epoch. Returns what was done."""
        epochs = self.budget.epochs or (None if self.budget.seconds else self.epochs)
        size = min(self.batch_size, len(self.rows))
        if size < 2:
            raise InputError(f"{self.validation.store.path}: {size} training product(s); a batch needs 2 or more")
        steps = len(self.rows) // size
        optimizer = self._optimizer()
        base = [group["lr"] for group in optimizer.param_groups]
        generator = np.random.default_rng(self.seed)
        best: tuple[float, int, dict[str, torch.Tensor]] = (-1.0, 0, {})
        epoch, share = 0, 0.0
        with progress_bar() as bar, flushed():
            task = bar.add_task(f"fitting {self.system.name}", total=None if epochs is None else epochs * steps)
            while share < 1:
                self.system.train()
                order = generator.permutation(self.rows)
                for step in range(steps):
                    share = self._share(epochs, epoch * steps + step, steps)
                    if share >= 1:
                        break
                    for group, lr in zip(optimizer.param_groups, base, strict=True):
                        group["lr"] = lr * min(share / WARM_UP, (1 - share) / (1 - WARM_UP), 1.0)
                    self._step(optimizer, self.loss(order[step * size : (step + 1) * size], epoch))
                    bar.advance(task)
                epoch += 1
                self.system.eval().settle()
                found = self.validation.of(self.system)
                if found > best[0]:
                    best = found, epoch, {name: t.clone() for name, t in self.system.state_dict().items()}
                share = self._share(epochs, epoch * steps, steps)
        self.system.load_state_dict(best[2])
        return {"epochs": epoch, "epoch": best[1], "validation_recall": best[0],
                "seconds": round(self.budget.elapsed, 2)}  # fmt: skip

    def _share(self, epochs: int | None, done: int, steps: int) -> float:
        """Of the budget that is used up; less than 1 before the first step, so that one is made."""
        if epochs is not None:
            return done / (epochs * steps)
        share = self.budget.elapsed / (self.budget.seconds or 1.0)
        return min(share, 0.999) if done == 0 else share

    def _optimizer(self) -> torch.optim.Optimizer:
        core = set() if self.system.text is None else {id(p) for p in self.system.text.bert.parameters()}
        groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
        for parameter in self.system.parameters():
            if parameter.requires_grad:
                groups.setdefault((id(parameter) in core, parameter.dim() > 1), []).append(parameter)
        return torch.optim.AdamW([
            {"params": parameters, "lr": self.core_lr if of_core else self.lr, "weight_decay": WEIGHT_DECAY * decays}
            for (of_core, decays), parameters in groups.items()
        ])  # fmt: skip

    def _step(self, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
        loss.backward()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad()


@contextlib.contextmanager
def flushed() -> Iterator[None]:
    """Subnormal numbers are 0 in this block: weights that decay and probabilities near 0 otherwise take a processor
    many times as long as others do."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
