"""A batch: pairs of titles and images as tensors, packed: one axis of tokens, no padding between pairs.

Shapes: B pairs, S1 = B + 1 offsets, N title tokens of all pairs, P patches, T = N + B P rows of the packed axis,
I distinct images, D patch feature, M masked tokens, K masked patches, three tasks (mlm, tia, mpm).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch


@dataclass
class Batch:
    """One micro-batch. Pair b is the rows ``offsets_S1[b]`` to ``offsets_S1[b + 1]`` of the packed axis: its title's
    tokens, then its P patches. Rows after the last pair, [PAD] tokens, fill up to a token budget (`Budget`)."""

    input_id_N: torch.Tensor  # int64, masked; the fill last
    position_N: torch.Tensor  # int64: the place of each token in its title
    text_row_N: torch.Tensor  # int64: its row of the packed axis
    offsets_S1: torch.Tensor  # int32
    cls_row_B: torch.Tensor  # int64: the row of each pair's [CLS]
    patch_row_B: torch.Tensor  # int64: the row of each pair's first patch
    features_IPD: torch.Tensor  # the store's dtype, each distinct image once
    image_index_B: torch.Tensor  # int64: the image of each pair
    patch_mask_BP: torch.Tensor  # bool, True: masked
    mlm_row_M: torch.Tensor  # int64: packed rows to predict, the fill's being 0
    mlm_label_M: torch.Tensor  # int64 token ids, the fill's being -100
    mpm_row_K: torch.Tensor  # int64: packed rows to predict
    mpm_target_K: torch.Tensor  # int64: their row of the features, image * P + patch
    tia_label_B: torch.Tensor  # int64, 1: title and image belong together
    counts_T: torch.Tensor  # float32: masked tokens, pairs, masked patches of this batch
    longest: int  # at least the tokens of any pair

    def _with(self, change) -> Batch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Batch(**{k: change(v) if isinstance(v, torch.Tensor) else v for k, v in values.items()})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch with every tensor on ``device``."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        return self._with(lambda tensor: tensor.pin_memory())

    @property
    def rows(self) -> int:
        """T, the rows of the packed axis, fill included."""
        return len(self.input_id_N) + self.patch_mask_BP.numel()

    @property
    def tokens(self) -> int:
        """Useful tokens: title tokens and patches, no fill. Reads a tensor: keep it out of a GPU step."""
        return int(self.offsets_S1[-1])
