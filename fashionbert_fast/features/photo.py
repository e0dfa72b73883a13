"""A photo's file to pixels. Files may come from strangers, so what one may cost is bounded before it is decoded.

Shapes: S pixels of a side.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP")  # by content, whatever the name; Pillow has others that start programs
MOST_PIXELS = 50_000_000
MOST_BYTES = 2**26
MOST_SCANS = 100  # of a progressive JPEG, each of which goes over all of it again; cameras and encoders write about ten
LARGE = 4_000_000  # pixels from which on photos are decoded one at a time, whatever the number of threads
START_OF_SCAN = b"\xff\xda"

_one_large = threading.Lock()


class PhotoTooLarge(ValueError):
    """The file asks for more than a photo may."""


def read_image(path: Path | BinaryIO, side: int, *, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """The photo as uint8 RGB [side, side, 3]: upright by its EXIF, on white where it is transparent.

    Of an animated one the first frame. Grey of more than 8 bits (`_eight_bits`) is scaled to them; Pillow itself drops
    the lower 8 of 16-bit colour.

    Raises:
        PhotoTooLarge: more than ``most_pixels``, `MOST_BYTES` or `MOST_SCANS`, found before anything is decoded.
        ValueError: the scale of its values cannot be told. Whatever Pillow raises on a file that is none of `FORMATS`
            or is cut short.
    """
    with opened(path, side, most_pixels) as image:
        return square_image(image, side)


def thumbnail(path: Path, side: int) -> bytes:
    """The photo as a JPEG of at most ``side`` pixels, in its own proportions; raises what `read_image` does."""
    with opened(path, side, MOST_PIXELS) as image:
        small, file = upright_rgb(image), io.BytesIO()
        small.thumbnail((side, side), Image.Resampling.BILINEAR)
    small.save(file, "JPEG", quality=85)
    return file.getvalue()


@contextlib.contextmanager
def opened(path: Path | BinaryIO, side: int, most_pixels: int) -> Iterator[Image.Image]:
    """The photo, to be decoded in the block, by then known to ask for no more than it may; raises what `read_image`
    does. One much larger than ``side`` may come smaller."""
    _check_bytes(path)
    try:
        image = Image.open(path, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UnidentifiedImageError(f"it is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file") from error
    except Image.DecompressionBombError as error:  # Pillow's own limit, which is higher than ours by default
        raise PhotoTooLarge(str(error)) from error
    with image:
        pixels = image.width * image.height
        if pixels > most_pixels:
            raise PhotoTooLarge(f"{image.width} x {image.height} pixels are more than {most_pixels:,}")
        if image.format in ("JPEG", "MPO"):
            _check_scans(image)
            image.draft("RGB", (side, side))  # one much larger than needed is decoded at 1/2, 1/4 or 1/8
        large = image.width * image.height >= LARGE
        with _one_large if large else contextlib.nullcontext():
            yield image


def _check_bytes(path: Path | BinaryIO) -> None:
    if isinstance(path, (str, Path)):
        size = os.stat(path).st_size
    else:
        size = path.seek(0, os.SEEK_END)
        path.seek(0)
    if size > MOST_BYTES:
        raise PhotoTooLarge(f"{size:,} bytes are more than {MOST_BYTES:,}")


def _check_scans(image: Image.Image) -> None:
    """In a scan's data 0xFF is never followed by this marker, so it is counted as it stands."""
    file = image.fp  # pyright: ignore[reportAttributeAccessIssue]  # of one that was opened from a file
    here = file.tell()
    file.seek(0)
    scans = file.read().count(START_OF_SCAN)
    file.seek(here)
    if scans > MOST_SCANS:
        raise PhotoTooLarge(f"{scans:,} scans of a progressive JPEG are more than {MOST_SCANS}")


def square_image(image: Image.Image, side: int) -> np.ndarray:
    """`read_image` of an image that is open already, at the size it has."""
    return np.asarray(upright_rgb(image).resize((side, side), Image.Resampling.BILINEAR))


def upright_rgb(image: Image.Image) -> Image.Image:
    """Upright by its EXIF, of 8 bits, on white where it is transparent."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("F", "I") or upright.mode.startswith("I;16"):
        upright = _eight_bits(upright)
    if upright.has_transparency_data:
        upright = _on_white(upright)
    return upright.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """RGB; in strips, so that little more than the image and the result are held at once."""
    result, rows = Image.new("RGB", image.size), max(1, LARGE // max(1, image.width))
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        strip = image.crop(box).convert("RGBA")
        white = Image.new("RGBA", strip.size, "white")
        result.paste(Image.alpha_composite(white, strip).convert("RGB"), box)
    return result


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, 32 bits or floating point (Pillow would cut it off at 255) as grey of 8.

    16-bit values are divided by 257. Wider ones say nowhere what is white, so the largest decides: integers count as
    8-bit up to 255, as 16-bit up to 65,535; floats as shares of white up to 1.0, as 8-bit up to 255. ValueError beyond,
    on negative values and on NaN.
    """
    values_hw = np.asarray(image).astype(np.float64)
    low, high = values_hw.min(), values_hw.max()
    whites = {"F": (1.0, 255.0), "I": (255.0, 65535.0)}.get(image.mode, (65535.0,))
    white = next((white for white in whites if high <= white), None)
    if white is None or not low >= 0:
        raise ValueError(f"grey values from {low:g} to {high:g}, whose scale cannot be told; save it with 8 or 16 bits")
    scaled_hw = np.rint(values_hw * (255 / white)).astype(np.uint8)
    if image.mode.startswith("I;16") and "transparency" in image.info:  # one value of a PNG stands for nothing there
        scaled_hw[values_hw == image.info["transparency"]] = 255
    return Image.fromarray(scaled_hw)
