"""What is in a feature store, in figures: splits, leaks, twins, lengths of titles, features.

Shapes: N products, n of them sampled, P patches, D feature.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fashionbert_fast.catalogue.queries import listed
from fashionbert_fast.catalogue.twins import KINDS, leaks, normalised_title, twin_keys
from fashionbert_fast.features.store import FeatureStore

SAMPLED_ROWS = 256
TITLES_AT_A_TIME = 10_000


def describe(store: FeatureStore, tokenizer: Any = None) -> dict[str, Any]:
    """Everything `fashionbert inspect` tells of ``store``, JSON-ready. ``tokenizer``: a transformers one, or None."""
    manifest = store.manifest
    return {
        "store": str(store.path),
        "products": len(store),
        "source": manifest.source,
        "created": manifest.created,
        "encoder": {name: part for name, part in manifest.encoder.items() if name != "weights_sha256"},
        "grid": manifest.grid,
        "patching": manifest.patching,
        "views": manifest.views,
        "feature_size": manifest.feature_size,
        "dtype": manifest.dtype,
        "fingerprint": manifest.fingerprint,
        "content_sha256": manifest.content_sha256,  # "": a store without hashes
        "splits": dict(Counter(store.splits).most_common()),
        "split_by": manifest.split_by,
        "leaks": leaks(store),
        "twins": describe_twins(store),
        "categories": dict(Counter(store.categories).most_common()),
        "subcategories": len(set(zip(store.categories, store.subcategories, strict=True))),
        "queries": describe_queries(store),
        "titles": describe_titles(store.titles, tokenizer),
        "features": describe_features(store),
        "problems": manifest.problems,
    }


def describe_twins(store: FeatureStore) -> dict[str, Any]:
    """Sets of two and more rows that show one product: how many products, how many sets of which size."""
    sizes = Counter(Counter(store.twin_N.tolist()).values())
    shared = {}
    for kind, keys in twin_keys(store.columns).items():
        times = Counter(key for key in keys if key)
        shared[kind] = sum(count for count in times.values() if count > 1)
    largest, size = Counter(store.twin_N.tolist()).most_common(1)[0]
    return {
        "products": sum(size * count for size, count in sizes.items() if size > 1),
        "sets": sum(count for size, count in sizes.items() if size > 1),
        "sizes": {str(size): sizes[size] for size in sorted(sizes) if size > 1},
        "products_that_share": {kind: shared[kind] for kind in KINDS},
        "largest": {"size": size, "id": store.ids[largest], "title": store.titles[largest]},
    }


def describe_queries(store: FeatureStore) -> dict[str, dict[str, int]]:
    """Of each split that has any: pairs of a query and a product, different queries, products that have one; of the
    held-out ones' queries, how many are asked of training products as well."""
    products = [(split, listed(cell)) for split, cell in zip(store.splits, store.queries, strict=True) if cell]
    different = {
        name: {normalised_title(query) for split, queries in products if split == name for query in queries}
        for name in dict.fromkeys(split for split, _ in products)
    }
    return {
        name: {
            "pairs": sum(len(queries) for split, queries in products if split == name),
            "queries": len(texts),
            "products": sum(split == name for split, _ in products),
        } | ({"also_in_train": len(texts & different.get("train", set()))} if name != "train" else {})
        for name, texts in different.items()
    }  # fmt: skip


def describe_titles(titles: Sequence[str], tokenizer: Any = None) -> dict[str, dict[str, float]]:
    """Lengths in characters, words and, without [CLS] and [SEP], tokens."""
    found = {"characters": spread([len(title) for title in titles]),
             "words": spread([len(title.split()) for title in titles])}  # fmt: skip
    if tokenizer is not None:
        lengths: list[int] = []
        for start in range(0, len(titles), TITLES_AT_A_TIME):
            encoded = tokenizer(list(titles[start : start + TITLES_AT_A_TIME]), add_special_tokens=False)
            lengths += [len(ids) for ids in encoded["input_ids"]]
        found["tokens"] = spread(lengths)
    return found


def spread(values: Sequence[int]) -> dict[str, float]:
    """Smallest, median, mean, 95th percentile and largest."""
    return {"min": min(values), "median": float(np.median(values)), "mean": float(np.mean(values)),
            "p95": float(np.percentile(values, 95)), "max": max(values)}  # fmt: skip


def describe_features(store: FeatureStore) -> dict[str, Any]:
    """Mean and deviation of the finite values of up to `SAMPLED_ROWS` rows spread over the store, shares of zeros,
    values that are not numbers, and dimensions that never change."""
    rows = np.unique(np.linspace(0, len(store) - 1, min(SAMPLED_ROWS, len(store))).astype(np.int64))
    total = squares = 0.0
    zeros = finite = values = 0
    low_D, high_D = torch.full((store.manifest.feature_size,), torch.inf), torch.tensor(-torch.inf)
    for row in rows:
        features_PD = store.features([row])[0].float()
        is_finite_PD = features_PD.isfinite()
        numbers = features_PD[is_finite_PD].double()
        total, squares = total + float(numbers.sum()), squares + float(numbers.square().sum())
        zeros, finite, values = zeros + int((numbers == 0).sum()), finite + len(numbers), values + features_PD.numel()
        low_D = torch.minimum(low_D, features_PD.where(is_finite_PD, torch.inf).amin(0))
        high_D = torch.maximum(high_D, features_PD.where(is_finite_PD, -torch.inf).amax(0))
    mean = total / max(1, finite)
    return {
        "rows": len(rows),
        "mean": mean,
        "std": max(0.0, squares / max(1, finite) - mean**2) ** 0.5,
        "zeros": zeros / values,
        "non_finite": values - finite,
        "constant_dimensions": int((low_D >= high_D).sum()),
    }
