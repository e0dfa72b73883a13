"""The batches that whole steps are measured on: title lengths as Fashion-Gen's or a store's own, 64 patches of 2,048.

Token ids, features and masked positions are drawn; lengths, their number of masked words and the shapes are what time
depends on. Shapes are those of data/batches.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fashionbert_fast.data.batches import IGNORED, Batch, Budget, pack, rounded_up
from fashionbert_fast.model.config import FashionBertConfig

LONGEST_TITLE = 64
CLS, SEP, MASK, FIRST_WORD = 101, 102, 103, 1000  # of BERT's vocabulary


def fashion_gen_lengths(count: int, seed: int = 0) -> np.ndarray:
    """Tokens of each title: N(25, 10) clipped to [8, 64], what Fashion-Gen's titles come to."""
    drawn = np.random.default_rng(seed).normal(25, 10, count)
    return np.clip(drawn.round(), 8, LONGEST_TITLE).astype(np.int64)


def store_lengths(store: Path, count: int, seed: int = 0) -> np.ndarray:
    """Tokens of ``count`` titles of a feature store, by the tokenizer of BERT's English vocabulary."""
    from fashionbert_fast.data.batches import TokenizedTitles
    from fashionbert_fast.data.store import FeatureStore
    from fashionbert_fast.model.checkpoint import load_tokenizer, resolve_core

    opened = FeatureStore.open(store)
    titles = TokenizedTitles(opened.titles, load_tokenizer(resolve_core("all-minilm-l6-v2")), LONGEST_TITLE)
    rows = np.random.default_rng(seed).integers(len(opened), size=count)
    return titles.lengths(rows)


def make_batches(
    config: FashionBertConfig, lengths: np.ndarray, pairs: int, *, seed: int = 0, budget: Budget | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> list[Batch]:  # fmt: skip
    """Batches of ``pairs`` pairs, titles of ``lengths`` tokens in that order; 15% of the words and 10% of the patches
    masked, features as the backbone gives them: not negative, half of them zero."""
    budget = budget or Budget.of(pairs, LONGEST_TITLE + config.patches)
    starts = range(0, len(lengths) - pairs + 1, pairs)
    return [_make(config, lengths[start : start + pairs], seed + start, budget, dtype) for start in starts]


def _make(config: FashionBertConfig, lengths_B: np.ndarray, seed: int, budget: Budget, dtype: torch.dtype) -> Batch:
    generator, B, P = np.random.default_rng(seed), len(lengths_B), config.patches
    sequences, positions, labels = [], [], []
    for length in lengths_B:
        ids = generator.integers(min(FIRST_WORD, config.vocab_size // 2), config.vocab_size, length)
        chosen = np.sort(generator.permutation(np.arange(1, length - 1))[: min(10, max(1, round(0.15 * (length - 2))))])
        labels.append(ids[chosen])
        ids[0], ids[-1], ids[chosen] = CLS % config.vocab_size, SEP % config.vocab_size, MASK % config.vocab_size
        sequences.append(ids)
        positions.append(chosen)
    packed = pack(sequences, P, 0, budget)
    rows_M = np.concatenate([o + c for o, c in zip(packed["offsets_S1"].tolist(), positions, strict=False)])
    fill = rounded_up(len(rows_M), budget.predictions) - len(rows_M)
    mask_BP = np.zeros((B, P), dtype=bool)
    np.put_along_axis(mask_BP, generator.random((B, P)).argsort(1)[:, : max(1, round(0.1 * P))], True, axis=1)
    pair_K, patch_K = (torch.from_numpy(index) for index in np.nonzero(mask_BP))
    torch_generator = torch.Generator().manual_seed(seed)
    features_IPD = torch.randn(B, P, config.patch_feature_size, generator=torch_generator).relu_().to(dtype)
    return Batch(
        **packed, features_IPD=features_IPD, image_index_B=torch.arange(B), patch_mask_BP=torch.from_numpy(mask_BP),
        mlm_row_M=torch.from_numpy(np.pad(rows_M, (0, fill))),
        mlm_label_M=torch.from_numpy(np.concatenate([*labels, np.full(fill, IGNORED)])),
        mpm_row_K=packed["patch_row_B"][pair_K] + patch_K, mpm_target_K=pair_K * P + patch_K,
        tia_label_B=torch.from_numpy(generator.integers(2, size=B)),
        counts_T=torch.tensor([len(rows_M), B, len(pair_K)], dtype=torch.float32), longest=LONGEST_TITLE + P,
    )  # fmt: skip
