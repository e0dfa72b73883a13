"""The products of the contrastive loss: who is in a batch, as a title alone and as a photo alone, and who is wrong for
whom. Functions of seed, epoch and product, as all that a batch holds.

Shapes: N products in use, C slots of a micro-batch, n of them with a product, R ranks, G = R C.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fashionbert_fast.data.batch import ContrastiveTargets
from fashionbert_fast.data.counter_rng import Stream, random_bits, uniform


def epoch_order(
    rows: np.ndarray, batch: int, *, seed: int, epoch: int, groups: np.ndarray | None = None
) -> np.ndarray:  # fmt: skip
    """The epoch's products in order, int64, a whole number of batches; what is left over is dropped.

    Args:
        rows: (N,) int64 store rows. batch: products of a global micro-batch. groups: (N, 2) int, the category and the
            sub-category of each: given, those of one sub-category stand together, and so do those of one category, and
            the batches that this makes come in a drawn order.
    """
    keys = [random_bits(seed, Stream.CONTRASTIVE_ORDER, epoch, rows)]
    if groups is not None:  # of different numbers the bits differ, so equal ones stay together
        keys += [random_bits(seed, Stream.CONTRASTIVE_ORDER, epoch, 1, groups[:, i]) for i in (1, 0)]
    ordered = rows[np.lexsort(keys)]
    ordered_b = ordered[: len(ordered) // batch * batch].reshape(-1, batch)
    if groups is not None:
        ordered_b = ordered_b[np.argsort(random_bits(seed, Stream.CONTRASTIVE_ORDER, epoch, 2, ordered_b[:, 0]))]
    return ordered_b.ravel()


def contrastive_targets(
    rows_of_ranks: Sequence[np.ndarray], twin_N: np.ndarray, rank: int, slots: int
) -> ContrastiveTargets:  # fmt: skip
    """What the products of a micro-batch, store rows of each rank, at most ``slots``, are to tell apart.

    Args:
        twin_N: of the store, equal for duplicates (`catalogue.twins`): they are not wrong for each other.
    """
    twin_G, live_G = np.zeros((2, len(rows_of_ranks) * slots), dtype=np.int64)
    for place, rows in enumerate(rows_of_ranks):
        here = slice(place * slots, place * slots + len(rows))
        twin_G[here], live_G[here] = twin_N[rows], 1
    own = slice(rank * slots, (rank + 1) * slots)
    wrong_CG = (twin_G[own, None] != twin_G) & (live_G > 0) & (live_G[own, None] > 0)
    return ContrastiveTargets(torch.from_numpy(live_G[own] > 0), torch.from_numpy(wrong_CG))


def mirrored(features_IPD: torch.Tensor, rows_I: np.ndarray, rate: float, *, seed: int, epoch: int) -> torch.Tensor:
    """The features of photos, store rows ``rows_I``, of which a drawn share has left and right exchanged: the columns
    of the grid of patches, which must be square."""
    drawn_I = np.flatnonzero(uniform(seed, Stream.MIRROR, epoch, rows_I) < rate)
    if len(drawn_I) == 0:
        return features_IPD
    P = features_IPD.shape[1]
    grid = round(P**0.5)
    column_P = torch.arange(P).view(grid, grid).flip(1).flatten()
    chosen_I = torch.from_numpy(drawn_I)
    return features_IPD.index_copy(0, chosen_I, features_IPD[chosen_I][:, column_P])
