"""From a checkpoint and a feature store on disk to the figures of a protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fashionbert_fast.catalogue.twins import leaks
from fashionbert_fast.data.titles import TokenizedTitles
from fashionbert_fast.data.tokenizer import load_tokenizer
from fashionbert_fast.distributed import pick_device
from fashionbert_fast.errors import InputError
from fashionbert_fast.evaluation.protocols import evaluate
from fashionbert_fast.evaluation.scorer import DEFAULT_BATCH_SIZE, PairScorer
from fashionbert_fast.features.store import FeatureStore, require_same_features
from fashionbert_fast.objectives.pretraining import FashionBertForPreTraining
from fashionbert_fast.processor import max_text_tokens
from fashionbert_fast.run_directory import resolve_model_dir


def evaluate_checkpoint(
    checkpoint: Path,
    data: Path,
    *,
    split: str = "validation",
    batch_size: int | None = None,
    device: str | None = None,
    precision: str = "fp32",
    **options: Any,
) -> dict[str, Any]:
    """Open the store and the checkpoint, check that their features are the same, and ``evaluate(**options)``.

    Adds "precision", "split", "checkpoint" and "data" to the result, so that a figure says where it comes from, and
    "leaks": how many products of a held-out split share a title, a photo or a group with training.
    """
    store = FeatureStore.open(data)
    rows = split_rows(store, split, data)
    scorer, model_dir = load_scorer(checkpoint, store, data, batch_size, device, precision)
    result = evaluate(store, rows, scorer.score, vectors=scorer.vectors, **options)
    result |= {"precision": precision, "split": split, "checkpoint": str(model_dir), "data": str(data)}
    if split not in ("train", "all"):
        result["leaks"] = leaks(store)[split]
    return result


def load_scorer(
    checkpoint: Path,
    store: FeatureStore,
    data: Path,
    batch_size: int | None = None,
    device: str | None = None,
    precision: str = "fp32",
) -> tuple[PairScorer, Path]:
    """The scorer of a checkpoint on a store, and the model directory it was read from.

    checkpoint: a saved model or a run directory. InputError when there is no model, when it was trained on other patch
    features than the store holds, or when the device does not exist.
    """
    target = pick_device(device)
    model_dir = resolve_model_dir(checkpoint)
    model = FashionBertForPreTraining.from_pretrained(model_dir)
    tokenizer = load_tokenizer(model_dir)
    if model.feature_manifest is not None:
        require_same_features(model.feature_manifest, store.manifest, f"{model_dir} and {data}")
    trained = model.config.patches, model.config.patch_feature_size
    stored = store.manifest.patches, store.manifest.feature_size
    if trained != stored:  # a model saved without a manifest still has to fit
        raise InputError(
            f"{data}: {stored[0]} patches of {stored[1]} features, but {model_dir} takes {trained[0]} of {trained[1]}; "
            "prepare the catalogue with the model's grid and encoder"
        )
    titles = TokenizedTitles(store.titles, tokenizer, max_text_tokens(model_dir))
    model.to(target)
    batch_size = batch_size or DEFAULT_BATCH_SIZE
    return PairScorer(model, store, titles, batch_size=batch_size, precision=precision), model_dir


def split_rows(store: FeatureStore, split: str, data: Path) -> np.ndarray:
    """Rows of a split. InputError naming the store and the splits it has when there are none."""
    rows = store.rows(None if split == "all" else split)
    if len(rows) == 0:
        has = ", ".join(sorted({name or "(none)" for name in store.splits})) or "(no products)"
        raise InputError(f"{data}: split {split!r} has no products, the store has {has}; choose another --split")
    return rows
