"""A batch: pairs of titles and images as tensors, packed: one axis of tokens, no padding between pairs.

`PackedPairs` is what the core reads, `Targets` what the three tasks read, `QueryTargets` what queries read,
`ContrastiveTargets` what the contrastive loss reads, a `Batch` all of them.

Shapes: B pairs, S sequences and S1 = S + 1 offsets, N tokens of all texts, P patches, T = N + B P rows of the packed
axis, I distinct images, D patch feature, M masked tokens, K masked patches, three tasks (mlm, tia, mpm); C slots of a
micro-batch, at least B, R ranks, G = R C.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Self

import torch


@dataclass
class _OfTensors:
    """What a dataclass of tensors, of other such dataclasses and of numbers can do."""

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """The same with every tensor changed."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                values[name] = change(value)
            elif isinstance(value, _OfTensors):
                values[name] = value.map(change)
        return type(self)(**values)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same with every tensor on ``device``."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        return self.map(lambda tensor: tensor.pin_memory())


@dataclass
class PackedPairs(_OfTensors):
    """What the core reads. Pair b is the rows ``cu_seqlens_S1[b]`` to ``cu_seqlens_S1[b + 1]`` of the packed axis: its
    title's tokens, then its P patches. Rows after the last pair, [PAD] tokens, fill up to a token budget (`Budget`).

    A sequence may be a text alone, which then has no place in the fields of B that speak of images, or patches alone.
    In pre-training with queries C sequences follow the pairs, each a query or empty (`QueryTargets`); with a
    contrastive loss C titles alone and C photos alone come last, each of a product or empty (`ContrastiveTargets`).
    Such a photo has its place in the fields of B behind those of the pairs.
    """

    input_id_N: torch.Tensor  # int64, masked; the fill last
    position_N: torch.Tensor  # int64: the place of each token in its title
    text_row_N: torch.Tensor  # int64: its row of the packed axis
    cu_seqlens_S1: torch.Tensor  # int32: cumulative sequence lengths, from 0
    cls_row_B: torch.Tensor  # int64: the row of each pair's [CLS]
    patch_row_B: torch.Tensor  # int64: the row of each pair's first patch
    features_IPD: torch.Tensor  # the store's dtype, each distinct image once
    image_index_B: torch.Tensor  # int64: the image of each pair
    patch_mask_BP: torch.Tensor  # bool, True: masked
    max_seqlen: int  # at least the tokens of any pair
    segment_N: torch.Tensor | None = None  # int64: the segment of each token; None: all are of titles

    @property
    def rows(self) -> int:
        """T, the rows of the packed axis, fill included."""
        return len(self.input_id_N) + self.patch_mask_BP.numel()

    def in_segment(self, segment: int) -> Self:
        """The same with every token in that segment: queries, by `FashionBert.query_segment`."""
        return replace(self, segment_N=torch.full_like(self.input_id_N, segment))

    @property
    def tokens(self) -> int:
        """Useful tokens: title tokens and patches, no fill. Reads a tensor: keep it out of a GPU step."""
        return int(self.cu_seqlens_S1[-1])


@dataclass
class Targets(_OfTensors):
    """What the pre-training objective reads: where the core's rows are predicted, and what is right there."""

    mlm_row_M: torch.Tensor  # int64: packed rows to predict, the fill's being 0
    mlm_label_M: torch.Tensor  # int64 token ids, the fill's being -100
    mpm_row_K: torch.Tensor  # int64: packed rows to predict
    mpm_target_K: torch.Tensor  # int64: their row of the features, image * P + patch
    tia_label_B: torch.Tensor  # int64, 1: title and image belong together
    counts_T: torch.Tensor  # float32: masked tokens, pairs, masked patches of this batch


@dataclass
class QueryTargets(_OfTensors):
    """What retrieval reads. Slot c of a micro-batch is pair c, whose vector is an item's where it is a match, and
    sequence B + c, a query that it is right for or nothing. As many slots on every rank, so that shapes agree."""

    asks_C: torch.Tensor  # bool: there is a query
    wrong_CG: torch.Tensor  # bool: the item of slot c of rank r, column r C + c, is one and not right for the query


@dataclass
class ContrastiveTargets(_OfTensors):
    """What the contrastive loss reads. Slot c of a micro-batch is a product or empty; its title alone is the c-th of
    the last 2 C sequences, its photo alone the (C + c)-th. As many slots on every rank, so that shapes agree."""

    live_C: torch.Tensor  # bool: the slot has a product
    wrong_CG: torch.Tensor  # bool: slot c of rank r, column r C + c, has a product, and no duplicate of this slot's


@dataclass
class Batch(_OfTensors):
    """One micro-batch of pre-training."""

    inputs: PackedPairs
    targets: Targets
    queries: QueryTargets | None = None
    contrastive: ContrastiveTargets | None = None


class StepCounts(NamedTuple):
    """What an optimizer step holds, summed over its pairs. The first three normalise the tasks' losses, in the order of
    `model.config.TASKS`, the last two those of queries and of the contrastive loss; the others, and the masked ones,
    say how much useful work it is (engine/reporting/flops.py)."""

    masked_tokens: float
    pairs: float
    masked_patches: float
    tokens: float  # useful ones: of titles and queries, and patches, each as often as it is encoded
    squared_lengths: float
    patches: float
    queries: float = 0.0
    products: float = 0.0  # of the contrastive loss

    @classmethod
    def of(cls, batches: Iterable[Batch]) -> torch.Tensor:
        """(8,) float32, one vector, so that ranks add theirs up in one all-reduce; ``StepCounts(*vector.tolist())``."""
        total = torch.zeros(len(cls._fields))
        for batch in batches:
            lengths_S = batch.inputs.cu_seqlens_S1.diff().float()
            patches = torch.tensor(float(batch.inputs.patch_mask_BP.numel()))
            queries = torch.zeros(()) if batch.queries is None else batch.queries.asks_C.sum().float()
            products = torch.zeros(()) if batch.contrastive is None else batch.contrastive.live_C.sum().float()
            rest = torch.stack([lengths_S.sum(), lengths_S.square().sum(), patches, queries, products])
            total += torch.cat([batch.targets.counts_T, rest])
        return total
