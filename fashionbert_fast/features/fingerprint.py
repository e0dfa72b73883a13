"""The probe: what an encoder makes of one fixed photo, so that two runs of `prepare` can tell whether they agree.

The photo is made of integers and goes the way of any photo: decoded from a PNG, turned by its EXIF, resized, cut,
normalised, encoded. What differs between two machines shows in it: a library's resizing, the precision the encoder
computes in, an operator that is wrong on one of them. Only decoders of other formats, such as JPEG, do not.

Distances are relative L2, ||a - b|| / max(||a||, ||b||). Measured on an AMD EPYC (Zen 5, bf16), of the probe / of the
worst of 24 real photos (*: of 8):

    two runs that computed in                             efficientnet-lite0     random
    float32, ONEDNN_MAX_CPU_ISA default against AVX2      0 / 0                  0 / 0
    bfloat16, default against AVX2                        0.6% / 0.8%*           0.02% / 0.1%
    bfloat16 against float32                              5.0% / 4.7%            0.9% / 2.0%
    float32, bicubic for bilinear resizing                13%                    4.5%
    float32, colour channels swapped                      45%                    62%

So features computed in the same type may be `TOLERANCE` apart, others `TOLERANCE_ACROSS_TYPES`: about twice what was
measured.

Shapes: S pixels of a side, P patches, D feature, K values kept.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

TOLERANCE = 0.02
TOLERANCE_ACROSS_TYPES = 0.1
KEPT = 512  # values of the probe's features, spread over patches and dimensions: enough for a distance to a tenth
TURNED = 6  # EXIF: to be turned by a quarter
EXIF_ORIENTATION = 0x0112


def probe_photo(side: int) -> bytes:
    """A PNG larger than ``side`` pixels: on near white, an ellipse with a checked pattern on slow changes of colour."""
    height, width = side + side // 3 + 1, side + side // 2 + 3
    y, x = np.arange(height, dtype=np.int64)[:, None], np.arange(width, dtype=np.int64)
    is_inside = 4 * ((2 * x - width) ** 2 * height**2 + (2 * y - height) ** 2 * width**2) < 3 * (height * width) ** 2
    check = (x // max(1, side // 16) + y // max(1, side // 8)) % 2
    garment = (x * 200 // width + 40, y * 180 // height + 30, check * 90 + 60)
    channels = [np.where(is_inside, channel, 247).astype(np.uint8) for channel in garment]
    exif, file = Image.Exif(), io.BytesIO()
    exif[EXIF_ORIENTATION] = TURNED
    Image.fromarray(np.stack(channels, -1)).save(file, "PNG", exif=exif, compress_level=1)
    return file.getvalue()


def probe_of(image_SS3: np.ndarray, features_PD: np.ndarray) -> dict[str, str]:
    """What a manifest keeps of the probe, read and resized to ``image_SS3``, with its float32 features."""
    flat = np.ascontiguousarray(features_PD, dtype="<f4").reshape(-1)
    kept_K = flat[np.linspace(0, len(flat) - 1, min(KEPT, len(flat))).astype(int)]
    photo = hashlib.blake2b(np.ascontiguousarray(image_SS3), digest_size=16).hexdigest()
    return {"photo": photo, "features": base64.b64encode(kept_K.tobytes()).decode()}


def relative_distance(a: np.ndarray, b: np.ndarray) -> float:
    """||a - b|| / max(||a||, ||b||), of all their values; 0 where both are all zero."""
    a, b = np.asarray(a, dtype=np.float64).ravel(), np.asarray(b, dtype=np.float64).ravel()
    longest = max(np.linalg.norm(a), np.linalg.norm(b))
    return float(np.linalg.norm(a - b) / longest) if longest else 0.0


def tolerance(first: Mapping[str, Any], second: Mapping[str, Any]) -> float:
    """How far apart features of two manifests may be: more where their encoders computed in different types."""
    types = {manifest["encoder"].get("computed_in") for manifest in (first, second)}
    return TOLERANCE if len(types) == 1 else TOLERANCE_ACROSS_TYPES


def probe_difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """How the encoders of two manifests differ on the probe; "": within `tolerance`, or one of them has no probe."""
    a, b = first.get("probe"), second.get("probe")
    if not a or not b:
        return ""
    a_K, b_K = (np.frombuffer(base64.b64decode(probe["features"]), "<f4") for probe in (a, b))
    distance, allowed = relative_distance(a_K, b_K), tolerance(first, second)
    if distance <= allowed:
        return ""
    return f"{distance:.1%} apart on the same photo, where {allowed:.0%} is agreement ({_names(first, second)})"


def _names(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """What is known to differ between two runs of `prepare`."""
    types = [manifest["encoder"].get("computed_in", "unknown") for manifest in (first, second)]
    alike = first["probe"]["photo"] == second["probe"]["photo"]
    versions = [manifest.get("versions", {}) for manifest in (first, second)]
    differing = [f"{name} {versions[0].get(name, 'none')} against {versions[1].get(name, 'none')}"
                 for name in sorted(set(versions[0]) | set(versions[1]))
                 if versions[0].get(name) != versions[1].get(name)]  # fmt: skip
    parts = [f"computed in {types[0]} against {types[1]}" if types[0] != types[1] else f"both computed in {types[0]}",
             "the photo was read and resized alike" if alike else "the photo was read or resized differently",
             *differing]  # fmt: skip
    return ", ".join(parts)
