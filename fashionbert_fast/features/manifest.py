"""The manifest of a feature store: what its features are and how they were made, and whether two may be mixed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self, get_origin, get_type_hints

import torch

from fashionbert_fast.errors import InputError
from fashionbert_fast.features.fingerprint import probe_difference

FORMAT_VERSION = 1
PATCHINGS = ("separate", "map", "hypercolumns")  # see `patch_encoder`
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# What must agree before two stores' features may meet: the parts of the manifest that the fingerprint covers.
# `encoder.name` is left out: the same weights may come from a hub or from a directory of any name.
SAME_FEATURES = (
    "grid", "patching",
    "resize.image_pixels", "resize.patch_pixels", "resize.interpolation",
    "encoder.architecture", "encoder.feature_size", "encoder.pooling", "encoder.weights_sha256",
    "normalisation.mean", "normalisation.std",
)  # fmt: skip
# What a manifest means that was written before there was the field, and what the fingerprint leaves out: such stores
# and checkpoints keep theirs.
UNSAID = {"patching": "separate"}


@dataclass
class Manifest:
    """What a store holds. ``fingerprint`` stands for grid, resize, encoder, normalisation and patching together."""

    grid: int  # the image is cut into grid x grid patches
    resize: dict[str, Any]  # image_pixels, patch_pixels, interpolation
    encoder: dict[str, Any]  # name, architecture, pooling, weights_sha256, feature_size, trained
    normalisation: dict[str, Any]  # mean, std of the channels, in units of 1 = white
    patching: str = "separate"  # separate | map | hypercolumns: see `patch_encoder`
    views: int = 1  # of each photo that are stored: as it is, then parts of it, see `views`
    statistics: dict[str, list[float]] = field(default_factory=dict)  # mean, std of each dimension: see `moments`
    dtype: str = "bfloat16"  # of features.bin: bfloat16 | float16 | float32
    products: int = 0
    splits: dict[str, int] = field(default_factory=dict)  # split -> products
    problems: dict[str, int] = field(default_factory=dict)  # kind -> rows left out
    source: str = ""  # the catalogue
    seed: int = 0  # of the hold-out
    holdout: float = 0.0  # share held out; 0 where the catalogue has a split of its own
    test: float = 0.0  # share of the split "test", likewise
    split_by: str = ""  # what kept rows in one split, of group, title, photo; "" where the catalogue has a split
    leaks: dict[str, dict[str, int]] = field(default_factory=dict)  # split -> products, title, photo, group (`leaks`)
    created: str = ""  # UTC
    probe: dict[str, str] = field(default_factory=dict)  # what the encoder makes of a fixed photo (`probe`)
    versions: dict[str, str] = field(default_factory=dict)  # libraries that made it, for information
    content_sha256: str = ""  # of what the store holds, wherever it lies; "" in a store without hashes
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # file -> bytes, sha256 (`integrity`)
    format_version: int = FORMAT_VERSION

    @property
    def patches(self) -> int:
        return self.grid * self.grid

    @property
    def feature_size(self) -> int:
        return self.encoder["feature_size"]

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over what `SAME_FEATURES` names: equal for features that may be mixed."""
        fields = asdict(self)
        parts = {name: _get(fields, name) for name in SAME_FEATURES}
        parts = {name: part for name, part in parts.items() if name not in UNSAID or part != UNSAID[name]}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with the fingerprint."""
        return asdict(self) | {"fingerprint": self.fingerprint}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`. ValueError on a manifest that lacks a field or contradicts its own fingerprint."""
        known = {f.name for f in fields(cls)}
        missing = [name for name in SAME_FEATURES if _get(value, name) is None]
        if missing or value.get("dtype") not in DTYPES:
            raise ValueError(f"lacks {missing[0]}" if missing else f"dtype {value.get('dtype')!r} is unknown")
        if _get(value, "patching") not in PATCHINGS:
            raise ValueError(f"patching {value['patching']!r:.50} is unknown")
        manifest = cls(**{name: part for name, part in value.items() if name in known})
        for name, kind in get_type_hints(cls).items():
            if not isinstance(getattr(manifest, name), _accepted(kind)):
                raise ValueError(f"{name} is {getattr(manifest, name)!r:.50}, which it cannot be")
        sizes = manifest.grid, manifest.feature_size, manifest.views, manifest.products
        if not all(type(size) is int and low <= size < 2**40 for size, low in zip(sizes, (1, 1, 1, 0), strict=True)):
            raise ValueError(f"{sizes} are no grid, feature size, views and products")
        _check_statistics(manifest)
        if manifest.fingerprint != value.get("fingerprint"):
            raise ValueError("was edited: its fingerprint does not belong to its fields")
        return manifest


def _check_statistics(manifest: Manifest) -> None:
    for name in ("mean", "std") if manifest.statistics else ():
        values = manifest.statistics.get(name)
        if not isinstance(values, list) or len(values) != manifest.feature_size:
            raise ValueError(f"statistics.{name} is no list of {manifest.feature_size} numbers")
        if not all(type(x) in (int, float) and math.isfinite(x) and (x >= 0 or name == "mean") for x in values):
            raise ValueError(f"statistics.{name} holds what it cannot")


def _accepted(kind: Any) -> tuple[type, ...]:
    return (float, int) if kind is float else (get_origin(kind) or kind,)


def _get(value: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return UNSAID.get(dotted) if value is None else value


def require_same_features(a: Manifest | Mapping[str, Any], b: Manifest | Mapping[str, Any], what: str) -> None:
    """InputError where the features of ``a`` and ``b`` cannot be mixed, naming in what they differ.

    ``what`` names the two, such as "runs/a and stores/b". Compared: grid, resize, backbone, normalisation and patching
    by what the manifests say, and the features that both encoders gave for the probe, within a tolerance (see `probe`).
    Manifests without a probe pass that part.
    """
    require_same_fields(a, b, what)
    first, second = (m.to_dict() if isinstance(m, Manifest) else m for m in (a, b))
    try:
        difference = probe_difference(first, second)
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # of a manifest that was edited
        raise InputError(f"{what}: their probes cannot be compared ({error}); take them from where they were written"
                         ) from error  # fmt: skip
    if difference:
        raise InputError(f"{what}: their patch features are {difference} and cannot be mixed; prepare the catalogue "
                         "again where the other was prepared, or with the same libraries")  # fmt: skip


def require_same_fields(a: Manifest | Mapping[str, Any], b: Manifest | Mapping[str, Any], what: str) -> None:
    """InputError naming the first field of `SAME_FEATURES` in which two manifests differ."""
    if difference := field_difference(a, b):
        raise InputError(f"{what}: their patch features differ in {difference} and cannot be mixed; "
                         "prepare the catalogue again with the same --encoder, --grid, --patching and --patch-pixels"
                         )  # fmt: skip


def field_difference(a: Manifest | Mapping[str, Any], b: Manifest | Mapping[str, Any]) -> str:
    """The first field of `SAME_FEATURES` in which two manifests differ, with what they say; "" where there is none."""
    first, second = (m.to_dict() if isinstance(m, Manifest) else m for m in (a, b))
    for name in SAME_FEATURES:
        x, y = _get(first, name), _get(second, name)
        if x != y:
            if name.startswith("encoder"):
                x, y = (f"{v} of {_get(m, 'encoder.name')}" for v, m in ((x, first), (y, second)))
            return f"{name} ({x} against {y})"
    return ""
