"""Further views of a photo: parts of it, mirrored or not, drawn from a hash of the product and never of its order.

Shapes: S pixels of a side.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fashionbert_fast.features.photo import MOST_PIXELS, opened, upright_rgb

SMALLEST, LARGEST = 0.6, 0.95  # of each side of the photo, that a view shows


@dataclass(frozen=True)
class View:
    """The part ``left`` to ``left + scale`` of the width, ``top`` to ``top + scale`` of the height."""

    left: float
    top: float
    scale: float
    mirrored: bool


def draw_view(seed: int, identity: str, view: int) -> View:
    """View ``view`` of the product of that id: mirrored one time in two, of a scale uniform in [SMALLEST, LARGEST], at
    a uniform place."""
    digest = hashlib.sha256(f"{seed} {view} {identity}".encode()).digest()
    coin, size, x, y = (int.from_bytes(digest[8 * i : 8 * i + 8], "big") / 2**64 for i in range(4))
    scale = SMALLEST + (LARGEST - SMALLEST) * size
    return View(x * (1 - scale), y * (1 - scale), scale, coin < 0.5)


def read_views(path: Path, side: int, views: Sequence[View], *, most_pixels: int = MOST_PIXELS) -> list[np.ndarray]:
    """Those views of the photo, each uint8 RGB [S, S, 3] like `photo.read_image`, which see; decoded once, and finely
    enough for the smallest."""
    with opened(path, math.ceil(side / SMALLEST), most_pixels) as image:
        upright = upright_rgb(image)
        return [_part(upright, side, view) for view in views]


def _part(image: Image.Image, side: int, view: View) -> np.ndarray:
    width, height = image.size
    right, bottom = min(1.0, view.left + view.scale), min(1.0, view.top + view.scale)
    box = (view.left * width, view.top * height, right * width, bottom * height)
    part = image.resize((side, side), Image.Resampling.BILINEAR, box=box)
    return np.asarray(ImageOps.mirror(part) if view.mirrored else part)
