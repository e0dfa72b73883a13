"""Where each token of a batch stands on the packed axis.

Shapes: B pairs, S1 = B + 1 offsets, N title tokens of all pairs, L tokens of the longest title, P patches, D patch
feature.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fashionbert_fast.data.batch import PackedPairs


@dataclass(frozen=True)
class Budget:
    """Shapes repeat from batch to batch when sizes are rounded up: fewer compilations, CUDA graphs that fit again, and
    products of even sizes, which libraries like. A size s is rounded up to a multiple of the field."""

    tokens: int = 1  # rows of the packed axis
    predictions: int = 1  # masked tokens

    @classmethod
    def of(cls, pairs: int, max_seqlen: int) -> Budget:
        """For batches of ``pairs`` pairs of up to ``max_seqlen`` tokens: fill stays near 1% of the tokens."""
        tokens = max(16, 2 ** int(np.log2(max(1, pairs * max_seqlen / 64))))
        return cls(tokens, max(1, tokens // 4))


def rounded_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def pack(
    id_N: np.ndarray, lengths_B: np.ndarray, patches: int | np.ndarray, pad_id: int, budget: Budget
) -> dict[str, torch.Tensor]:
    """The text's and the layout's fields of `PackedPairs`, for titles of ``lengths_B`` tokens, one after another.

    Args:
        patches: P, or int64 (B,) for sequences of which some have none. Without a text: a length of 0.
    """
    cu_seqlens_S1 = np.concatenate([[0], np.cumsum(lengths_B + patches)])
    fill = rounded_up(int(cu_seqlens_S1[-1]), budget.tokens) - int(cu_seqlens_S1[-1])
    before_B = np.cumsum(lengths_B) - lengths_B  # title tokens of the pairs before
    place_N = np.arange(len(id_N)) - np.repeat(before_B, lengths_B)
    rows_N = place_N + np.repeat(cu_seqlens_S1[:-1], lengths_B)
    fields_of_text = {
        "input_id_N": np.concatenate([id_N, np.full(fill, pad_id)]),
        "position_N": np.concatenate([place_N, np.zeros(fill, dtype=np.int64)]),
        "text_row_N": np.concatenate([rows_N, cu_seqlens_S1[-1] + np.arange(fill)]),
        "cls_row_B": cu_seqlens_S1[:-1],
        "patch_row_B": (cu_seqlens_S1[:-1] + lengths_B)[np.broadcast_to(patches, lengths_B.shape) > 0],
    }
    tensors = {name: torch.from_numpy(value.astype(np.int64)) for name, value in fields_of_text.items()}
    return tensors | {"cu_seqlens_S1": torch.from_numpy(cu_seqlens_S1.astype(np.int32))}


def pack_unmasked(
    id_N: np.ndarray, lengths_B: np.ndarray, features_IPD: torch.Tensor, image_index_B: torch.Tensor, pad_id: int = 0
) -> PackedPairs:
    """Sequences for inference: text b before image ``image_index_B[b]``.

    Args:
        lengths_B: tokens of each text; all 0: images alone. image_index_B: empty: texts alone.
    """
    P = features_IPD.shape[1] if len(image_index_B) else 0
    return PackedPairs(
        **pack(id_N, lengths_B, np.full(len(lengths_B), P), pad_id, Budget()),
        features_IPD=features_IPD,
        image_index_B=image_index_B,
        patch_mask_BP=torch.zeros(len(image_index_B), features_IPD.shape[1], dtype=torch.bool),
        max_seqlen=int(lengths_B.max()) + P,
    )


def pack_padded(input_ids_BL: torch.Tensor, attention_mask_BL: torch.Tensor, features_BPD: torch.Tensor) -> PackedPairs:
    """Unmasked pairs, title b with image b, of titles padded to one length; ``attention_mask_BL`` is true at tokens."""
    live_BL = attention_mask_BL.cpu().bool()
    id_N, lengths_B = input_ids_BL.cpu()[live_BL].numpy(), live_BL.sum(1).numpy()
    return pack_unmasked(id_N, lengths_B, features_BPD, torch.arange(len(features_BPD)))
