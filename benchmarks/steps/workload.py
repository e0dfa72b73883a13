"""The batches that whole steps are measured on: title lengths as Fashion-Gen's or a store's own, 64 patches of 2,048.

Token ids, features and masked positions are drawn; lengths, their number of masked words and the shapes are what time
depends on. Shapes are those of data/pairs.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from fashionbert_fast.data.batch import Batch, PackedPairs, Targets
from fashionbert_fast.data.packing import Budget, pack, rounded_up
from fashionbert_fast.kernels._library import IGNORED
from fashionbert_fast.model.config import FashionBertConfig

if TYPE_CHECKING:
    from fashionbert_fast.features.manifest import Manifest

LONGEST_TITLE = 64
CLS, SEP, MASK, FIRST_WORD = 101, 102, 103, 1000  # of BERT's vocabulary


def fashion_gen_lengths(count: int, seed: int = 0) -> np.ndarray:
    """Tokens of each title: N(25, 10) clipped to [8, 64], what Fashion-Gen's titles come to."""
    drawn = np.random.default_rng(seed).normal(25, 10, count)
    return np.clip(drawn.round(), 8, LONGEST_TITLE).astype(np.int64)


def drawn_manifest(grid: int, patch_pixels: int, feature_size: int) -> Manifest:
    """Of a store whose features were drawn, not encoded."""
    from fashionbert_fast.features.manifest import Manifest

    return Manifest(
        grid=grid,
        resize={"image_pixels": grid * patch_pixels, "patch_pixels": patch_pixels, "interpolation": "bilinear"},
        encoder={"name": "drawn", "architecture": "none", "pooling": "mean", "weights_sha256": "0" * 64,
                 "feature_size": feature_size, "trained": False},
        normalisation={"mean": [0.5] * 3, "std": [0.5] * 3},
    )  # fmt: skip


def store_lengths(store: Path, count: int, seed: int = 0) -> np.ndarray:
    """Tokens of ``count`` titles of a feature store, by the tokenizer of BERT's English vocabulary."""
    from fashionbert_fast.data.titles import TokenizedTitles
    from fashionbert_fast.data.tokenizer import load_tokenizer
    from fashionbert_fast.features.store import FeatureStore
    from fashionbert_fast.model.directories import resolve_core

    opened = FeatureStore.open(store)
    titles = TokenizedTitles(opened.titles, load_tokenizer(resolve_core("all-minilm-l6-v2")), LONGEST_TITLE)
    rows = np.random.default_rng(seed).integers(len(opened), size=count)
    return titles.lengths(rows)


def make_batches(
    config: FashionBertConfig, lengths: np.ndarray, pairs: int, *, seed: int = 0, budget: Budget | None = None,
    dtype: torch.dtype = torch.bfloat16, bucketed: bool = False,
) -> list[Batch]:  # fmt: skip
    """Batches of ``pairs`` pairs. Sample i, with a title of ``lengths[i]`` tokens, depends on ``seed`` and i alone: 15%
    of its words and 10% of its patches masked, features as a backbone gives them (not negative, half of them zero).

    bucketed: samples of like length in a batch, instead of in order.
    """
    budget = budget or Budget.of(pairs, LONGEST_TITLE + config.patches)
    order = np.argsort(lengths, kind="stable") if bucketed else np.arange(len(lengths))
    starts = range(0, len(lengths) - pairs + 1, pairs)
    samples = [[_sample(config, lengths[i], (seed, i)) for i in order[start : start + pairs]] for start in starts]
    return [_collate(config, some, budget, dtype) for some in samples]


def _sample(config: FashionBertConfig, length: int, seed: tuple[int, int]) -> dict:
    generator, V, P = np.random.default_rng(seed), config.vocab_size, config.patches
    ids = generator.integers(min(FIRST_WORD, V // 2), V, length)
    chosen = np.sort(generator.permutation(np.arange(1, length - 1))[: min(10, max(1, round(0.15 * (length - 2))))])
    labels = ids[chosen]
    ids[0], ids[-1], ids[chosen] = CLS % V, SEP % V, MASK % V
    mask_P = np.zeros(P, dtype=bool)
    mask_P[generator.permutation(P)[: max(1, round(0.1 * P))]] = True
    features_PD = generator.standard_normal((P, config.patch_feature_size), dtype=np.float32).clip(min=0)
    return {"ids": ids, "chosen": chosen, "labels": labels, "mask_P": mask_P, "features_PD": features_PD,
            "match": generator.integers(2)}  # fmt: skip


def _collate(config: FashionBertConfig, samples: list[dict], budget: Budget, dtype: torch.dtype) -> Batch:
    B, P = len(samples), config.patches
    id_N = np.concatenate([sample["ids"] for sample in samples])
    packed = pack(id_N, np.asarray([len(sample["ids"]) for sample in samples]), P, 0, budget)
    first_rows = packed["cls_row_B"].tolist()
    rows_M = np.concatenate([row + sample["chosen"] for row, sample in zip(first_rows, samples, strict=True)])
    fill = rounded_up(len(rows_M), budget.predictions) - len(rows_M)
    mask_BP = np.stack([sample["mask_P"] for sample in samples])
    pair_K, patch_K = (torch.from_numpy(index) for index in np.nonzero(mask_BP))
    labels_M = np.concatenate([*(sample["labels"] for sample in samples), np.full(fill, IGNORED)])
    inputs = PackedPairs(
        **packed,
        features_IPD=torch.from_numpy(np.stack([sample["features_PD"] for sample in samples])).to(dtype),
        image_index_B=torch.arange(B),
        patch_mask_BP=torch.from_numpy(mask_BP),
        max_seqlen=LONGEST_TITLE + P,
    )
    targets = Targets(
        mlm_row_M=torch.from_numpy(np.pad(rows_M, (0, fill))), mlm_label_M=torch.from_numpy(labels_M),
        mpm_row_K=packed["patch_row_B"][pair_K] + patch_K, mpm_target_K=pair_K * P + patch_K,
        tia_label_B=torch.tensor([sample["match"] for sample in samples]),
        counts_T=torch.tensor([len(rows_M), B, len(pair_K)], dtype=torch.float32),
    )  # fmt: skip
    return Batch(inputs, targets)
