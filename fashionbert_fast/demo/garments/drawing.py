"""The sheet a garment is drawn on and the photo taken of it: plain light background, soft light, a crooked pose.

Everything is drawn flat on a 448 x 448 sheet with polygons; one affine transform then poses it, scales it and halves
the resolution, which is the anti-aliasing. Coordinates are pixels of that sheet; most garments are symmetric about
x = 224, so outlines are given as their right half: (distance from the middle, y).

The sheet is filled from a cloth (base colour, pattern in the second colour, folds), seen through a mask.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

SHEET = 448
PHOTO = SHEET // 2
MIDDLE = SHEET // 2

Colour = tuple[int, int, int]
Outline = Sequence[tuple[float, float]]

COLOURS: dict[str, Colour] = {
    "black": (38, 38, 42),
    "white": (250, 250, 248),
    "grey": (140, 143, 148),
    "red": (204, 32, 42),
    "navy": (30, 42, 96),
    "blue": (76, 146, 222),
    "green": (38, 132, 70),
    "yellow": (246, 206, 62),
    "orange": (240, 126, 36),
    "pink": (244, 146, 182),
    "purple": (122, 62, 152),
    "brown": (116, 72, 42),
    "beige": (222, 202, 166),
    "turquoise": (52, 184, 178),
}
PATTERNS = (
    "plain",
    "horizontal stripes",
    "vertical stripes",
    "dots",
    "checks",
    "diagonal stripes",
    "flowers",
    "two-tone",
)


@dataclass(frozen=True)
class Look:
    """What is visible on one photo. `details` maps an attribute of its sub-category (sleeve, neck, ...) to a value."""

    base: str
    second: str | None
    pattern: str
    details: dict[str, str] = field(default_factory=dict)


def mix(colour: Colour, other: Colour, share: float) -> Colour:
    return tuple(round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))  # type: ignore[return-value]


def line_colour(colour: Colour) -> Colour:
    """Seams: darker than the cloth, but lighter on cloth that is nearly black."""
    return mix(colour, (255, 255, 255), 0.3) if sum(colour) < 200 else mix(colour, (0, 0, 0), 0.35)


@lru_cache(maxsize=256)
def _pattern_mask(pattern: str, size: int, phase: int) -> Image.Image:
    """Where the second colour shows, [448, 448]; size 0 to 2 and phase 0 to 3 vary the repeat and where it starts."""
    y, x = np.mgrid[0:SHEET, 0:SHEET]
    x, y = x + 7 * phase, y + 5 * phase
    width = (16, 20, 25)[size]
    if pattern == "horizontal stripes":
        on = (y // width) % 2 * 255
    elif pattern == "vertical stripes":
        on = (x // width) % 2 * 255
    elif pattern == "diagonal stripes":
        on = ((x + y) // (width * 1.35)).astype(int) % 2 * 255
    elif pattern == "checks":
        on = (y // (width + 4)) % 2 * 128 + (x // (width + 4)) % 2 * 127
    elif pattern in ("dots", "flowers"):
        pitch = width * 2
        shift = (y // pitch) % 2 * (pitch // 2)
        u, v = (x + shift) % pitch - pitch / 2, y % pitch - pitch / 2
        radius = np.hypot(u, v)
        # a flower is a dot whose rim waves five times, with its heart left in the base colour
        rim = pitch * (0.27 if pattern == "dots" else 0.33 + 0.15 * np.cos(5 * np.arctan2(v, u)))
        on = (radius < rim) & ((pattern == "dots") | (radius > pitch * 0.11))
        on = on * 255
    else:
        raise ValueError(f"pattern: no such pattern {pattern!r}; have {PATTERNS}")
    return Image.fromarray(on.astype(np.uint8))


@lru_cache(maxsize=8)
def _folds(variant: int) -> Image.Image:
    """Soft shading of cloth, [448, 448] RGB to multiply with: darker to the sides, a few slanted waves."""
    generator = np.random.default_rng(variant)
    y, x = np.mgrid[0:SHEET, 0:SHEET] / SHEET - 0.5
    shade = 1.0 - 0.55 * np.abs(x - 0.04) ** 1.7
    for _ in range(3):
        slant, rate, start = generator.uniform(-0.8, 0.8), generator.uniform(14, 34), generator.uniform(0, 6.3)
        shade += 0.022 * np.sin(rate * (x + slant * y) + start)
    shade -= 0.06 * (y + 0.5)
    grey = (np.clip(shade, 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(np.repeat(grey[..., None], 3, axis=2))


@lru_cache(maxsize=8)
def _grain(variant: int) -> Image.Image:
    """A camera's noise, [224, 224] RGB to multiply with."""
    noise = np.random.default_rng(variant).normal(250, 3.5, (PHOTO, PHOTO, 3))
    return Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))


class Sheet:
    """A sheet being drawn on: `cloth` panels first, then trims, seams and fittings over them."""

    def __init__(self, look: Look, generator: random.Random):
        self.look, self.random = look, generator
        # no two dye lots are alike
        self.base = self._dye(look.base)
        self.second = self._dye(look.second) if look.second else self.base
        self.seam = line_colour(self.base)
        self.background = mix((255, 255, 255), generator.choice(BACKDROPS), generator.uniform(0.1, 0.9))
        self.image = Image.new("RGB", (SHEET, SHEET), self.background)
        self.draw = ImageDraw.Draw(self.image)
        self.centre_y = SHEET / 2.0  # where the photographer aims

    def _dye(self, name: str) -> Colour:
        shade = self.random.randint(-8, 8)
        return tuple(min(255, max(0, c + shade + self.random.randint(-4, 4))) for c in COLOURS[name])  # type: ignore[return-value]

    def get(self, attribute: str, default: str = "") -> str:
        return self.look.details.get(attribute, default)

    def _texture(self, box: tuple[int, int, int, int], split_y: float) -> Image.Image:
        """The cloth inside `box` (left, top, right, bottom), RGB."""
        texture = Image.new("RGB", (box[2] - box[0], box[3] - box[1]), self.base)
        if self.look.pattern == "two-tone":
            texture.paste(self.second, (0, round(split_y) - box[1], texture.width, texture.height))
        elif self.look.pattern != "plain":
            mask = _pattern_mask(self.look.pattern, self.random.randrange(3), self.random.randrange(4))
            texture.paste(self.second, (0, 0), mask.crop(box))
        return ImageChops.multiply(texture, _folds(self.random.randrange(8)).crop(box))

    def cloth(self, *outlines: Outline, split_y: float = 230) -> None:
        """Cut panels (full outlines) from the cloth, with a soft shadow under them and a seam around each."""
        mask = Image.new("L", (SHEET, SHEET))
        pen = ImageDraw.Draw(mask)
        for outline in outlines:
            pen.polygon(list(outline), fill=255)
        ys = [y for outline in outlines for _, y in outline]
        above = 16 if self.get("neck") in ("straps", "hood", "roll") else 0  # not cloth, but on the photo
        self.centre_y = (min(ys) - above + max(ys)) / 2
        shadow = mask.reduce(8).filter(ImageFilter.GaussianBlur(1.4)).resize((SHEET, SHEET), Image.Resampling.BILINEAR)
        shade = mix(self.background, (40, 40, 50), 0.28)
        self.image.paste(shade, (5, 9), shadow)
        box = mask.getbbox()
        assert box is not None, "a garment without cloth"
        self.image.paste(self._texture(box, split_y), box[:2], mask.crop(box))
        for outline in outlines:
            self.line(outline, closed=True)

    def line(self, points: Outline, *, colour: Colour | None = None, width: int = 3, closed: bool = False) -> None:
        points = [*points, points[0]] if closed else list(points)
        self.draw.line(points, fill=colour or self.seam, width=width, joint="curve")

    def fill(self, outline: Outline, colour: Colour, *, seam: bool = True) -> None:
        self.draw.polygon(list(outline), fill=colour)
        if seam:
            self.line(outline, colour=line_colour(colour), width=2, closed=True)

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        box = (x - radius, y - radius, x + radius, y + radius)
        self.draw.ellipse(box, fill=colour, outline=line_colour(colour), width=2)

    def photo(self) -> Image.Image:
        """The finished photo, [224, 224] RGB: posed, halved, with the camera's noise."""
        angle = self.random.uniform(-0.07, 0.07)
        scale = 2.0 * self.random.uniform(0.86, 1.02)
        dx, dy = self.random.uniform(-14, 14), self.random.uniform(-12, 12) + self.centre_y - MIDDLE
        cos, sin = scale * np.cos(angle), scale * np.sin(angle)
        half = PHOTO / 2
        a = (cos, -sin, MIDDLE + dx - cos * half + sin * half, sin, cos, MIDDLE + dy - sin * half - cos * half)
        photo = self.image.transform(
            (PHOTO, PHOTO), Image.Transform.AFFINE, a, Image.Resampling.BILINEAR, fillcolor=self.background
        )
        return ImageChops.multiply(photo, _grain(self.random.randrange(8)))


BACKDROPS: tuple[Colour, ...] = ((226, 228, 232), (236, 231, 224), (224, 232, 234), (240, 240, 240), (234, 226, 230))
METAL: Colour = (176, 176, 182)
GOLD: Colour = (206, 168, 84)


def mirrored(half: Outline) -> list[tuple[float, float]]:
    """The full outline of a right half given from top to bottom."""
    return [(MIDDLE + x, y) for x, y in half] + [(MIDDLE - x, y) for x, y in reversed(half)]


def both(half: Outline) -> list[list[tuple[float, float]]]:
    """A right-hand panel and its mirror image."""
    return [[(MIDDLE + x, y) for x, y in half], [(MIDDLE - x, y) for x, y in half]]


def curve(start: tuple[float, float], bend: tuple[float, float], end: tuple[float, float], steps: int = 7) -> Outline:
    """A quadratic curve, as points."""
    ts = [i / steps for i in range(steps + 1)]
    return [
        tuple((1 - t) ** 2 * s + 2 * t * (1 - t) * b + t * t * e for s, b, e in zip(start, bend, end, strict=True))
        for t in ts
    ]  # type: ignore[misc]


def draw(look: Look, painter: Callable[[Sheet], None], generator: random.Random) -> Image.Image:
    """The photo, [224, 224] RGB, of one garment; the same look and generator state give the same pixels."""
    sheet = Sheet(look, generator)
    painter(sheet)
    return sheet.photo()
