"""Batches of pairs for systems that read title and photo together: each title with its own photo and with another's.

Shapes: B products of a batch, 2B pairs.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

from fashionbert_fast.baselines.inputs import State
from fashionbert_fast.data.sampling import numbered, plan_epoch
from fashionbert_fast.features.store import FeatureStore


class _Joint(Protocol):
    def titles(self, rows: np.ndarray) -> State: ...
    def photos(self, rows: np.ndarray) -> State: ...
    def logits(self, titles: State, photos: State) -> torch.Tensor: ...


class PairBatches:
    """The others are of the product's sub-category, no twins, drawn anew each epoch by `plan_epoch`, as in pre-training
    with ``data.negatives=subcategory``."""

    def __init__(self, system: _Joint, store: FeatureStore, rows: np.ndarray, seed: int) -> None:
        self.system, self.store, self.rows, self.seed = system, store, np.sort(rows), seed
        self.group_N = numbered(zip(store.categories, store.subcategories, strict=True))[self.rows]
        self.other: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def others(self, rows: np.ndarray, epoch: int) -> np.ndarray:
        """For each product of ``rows`` the one whose photo its title meets."""
        if self.other[0] != epoch:
            plan = plan_epoch(
                self.rows, self.group_N, self.store.twin_N[self.rows], seed=self.seed, epoch=epoch, pairs="both",
                negative_rate=0.5,
            )  # fmt: skip
            other_N = np.arange(len(self.store))
            other_N[plan.text_rows[1::2]] = plan.image_rows[1::2]
            self.other = epoch, other_N
        return self.other[1][rows]

    def loss(self, rows: np.ndarray, epoch: int) -> torch.Tensor:
        """Binary cross-entropy of the 2B pairs of a batch of products, a scalar."""
        other_B = self.others(rows, epoch)
        titles, both = self.system.titles(rows), self.system.photos(np.concatenate([rows, other_B]))
        logits = self.system.logits(tuple(torch.cat([tensor, tensor]) for tensor in titles), both)
        label = torch.from_numpy(np.concatenate([np.ones(len(rows)), other_B == rows])).to(logits)
        return F.binary_cross_entropy_with_logits(logits, label)
