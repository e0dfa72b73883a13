"""Two stores of the same catalogue, prepared twice: do the features of the rows that they share agree?

Shapes: n rows at a time, P patches, D feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from fashionbert_fast.errors import InputError
from fashionbert_fast.features.fingerprint import probe_difference, relative_distance, tolerance
from fashionbert_fast.features.manifest import require_same_fields
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.progress import progress

WORST = 10


def compare(first: FeatureStore, second: FeatureStore) -> dict[str, Any]:
    """How far apart the features of all common ids are, by relative L2 distance, and whether they agree (see `probe`).

    InputError where the two cannot agree: another grid, encoder, ..., or no common id.
    """
    require_same_fields(first.manifest, second.manifest, f"{first.path} and {second.path}")
    row_of = {identity: row for row, identity in enumerate(second.ids)}
    rows = [(row, row_of[identity]) for row, identity in enumerate(first.ids) if identity in row_of]
    if not rows:
        raise InputError(f"{first.path} and {second.path}: no id is in both; compare two stores of one catalogue")
    manifests = asdict(first.manifest), asdict(second.manifest)
    allowed = tolerance(*manifests)
    distances = np.array([
        relative_distance(first.features([a]).float().numpy(), second.features([b]).float().numpy())
        for a, b in progress(rows, len(rows), "comparing rows")
    ])  # fmt: skip
    # not `> allowed`: a distance that is not a number is no agreement
    beyond = int((~(distances <= allowed)).sum())
    worst = np.argsort(-np.nan_to_num(distances, nan=np.inf), kind="stable")[:WORST]
    return {
        "stores": [str(first.path), str(second.path)],
        "computed_in": [manifest["encoder"].get("computed_in", "unknown") for manifest in manifests],
        "common": len(rows),
        "only_in_first": len(first) - len(rows),
        "only_in_second": len(second) - len(rows),
        "titles_differ": _count(rows, first.titles, second.titles),
        "photos_differ": _count(rows, first.image_hashes, second.image_hashes),  # as read and resized
        "median": float(np.median(distances)) if np.isfinite(distances).all() else None,
        "largest": float(distances.max()) if np.isfinite(distances).all() else None,
        "tolerance": allowed,
        "beyond_tolerance": beyond,
        "worst": [{"id": first.ids[rows[i][0]], "distance": _number(float(distances[i]))} for i in worst.tolist()],
        "probe": probe_difference(*manifests),  # "": the encoders agree on it, or one has none
        "agree": beyond == 0,
    }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _count(rows: Sequence[tuple[int, int]], first: Sequence[str], second: Sequence[str]) -> int:
    """In how many rows a column that both know differs."""
    return sum(bool(first[a] and second[b]) and first[a] != second[b] for a, b in rows)
