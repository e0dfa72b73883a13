"""Photos: what pixels a file gives, and that no file costs more than a photo may."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from fashionbert_fast.features import photo
from fashionbert_fast.features.photo import PhotoTooLarge, read_image, square_image

MEASURE = """
import resource, sys, time
from pathlib import Path
from fashionbert_fast.features.photo import read_image
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
try:
    read_image(Path(sys.argv[1]), 64)
    said = "read"
except Exception as error:
    said = f"{type(error).__name__}: {error}"
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.monotonic() - start, said, sep="|")
"""


def _read(path: Path) -> np.ndarray:
    """8 pixels a side of a file of ours, or, of a format that files may not have, of the image that somebody opened."""
    if path.suffix in (".tiff", ".pgm"):
        with Image.open(path) as image:
            return square_image(image, 8)
    return read_image(path, 8)


def save_image(path: Path, array: np.ndarray, mode: str | None = None, **options) -> Path:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def test_reading_images(tmp_path):
    grey = np.full((30, 20), 100, np.uint8)
    assert (read_image(save_image(tmp_path / "grey.png", grey), 16) == 100).all()
    assert (read_image(save_image(tmp_path / "palette.png", grey, "P"), 16) == 100).all()
    clear = np.zeros((8, 8, 4), np.uint8)  # transparent black: on white, as shops show it
    assert (read_image(save_image(tmp_path / "clear.png", clear), 16) == 255).all()
    upper = np.zeros((40, 40), np.uint8)
    upper[:20] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = read_image(save_image(tmp_path / "turned.jpg", upper, exif=exif), 40)
    assert turned.shape == (40, 40, 3) and turned.dtype == np.uint8
    assert turned[:15].mean() < 5 and turned[-15:].mean() > 250


GREY = [  # values of a photo's left and right half, how they are stored, the 8 bits that they are
    ((0, 25700), np.uint16, "png", (0, 100)),
    ((1000, 65535), np.uint16, "png", (4, 255)),  # 1000 / 257 = 3.89
    ((0, 25700), np.uint16, "tiff", (0, 100)),
    ((257, 65535), np.uint16, "pgm", (1, 255)),
    ((0, 200), np.uint16, "png", (0, 1)),  # a photo this dark stays dark
    ((0, 100), np.int32, "tiff", (0, 100)),
    ((51, 25700), np.int32, "tiff", (0, 100)),
    ((0.0, 0.4), np.float32, "tiff", (0, 102)),
    ((0.5, 100.0), np.float32, "tiff", (0, 100)),
    ((7, 200), np.uint8, "png", (7, 200)),
]


@pytest.mark.parametrize(("values", "dtype", "suffix", "expected"), GREY)
def test_grey_of_any_depth(tmp_path, values, dtype, suffix, expected):
    path = save_image(tmp_path / f"x.{suffix}", np.repeat(np.array([values], dtype), [4, 4], axis=1).repeat(8, axis=0))
    assert _read(path)[:, [0, 7]].tolist() == [[[expected[0]] * 3, [expected[1]] * 3]] * 8


@pytest.mark.parametrize("values", [(-1.0, 0.5), (0.0, 256.0), (0.0, float("nan")), (0.0, float("inf")), (0, 65536)])
def test_grey_whose_scale_cannot_be_told(tmp_path, values):
    dtype = np.float32 if isinstance(values[0], float) else np.int32
    path = save_image(tmp_path / "x.tiff", np.array([values, values], dtype))
    with pytest.raises(ValueError, match="whose scale cannot be told; save it with 8 or 16 bits"):
        _read(path)


def test_colours_of_any_mode(tmp_path):
    colour = Image.new("RGB", (8, 8), (200, 100, 30))
    half = Image.merge("LA", (Image.new("L", (8, 8), 100), Image.new("L", (8, 8), 51)))
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([9, 9, 9, 200, 100, 30])
    palette.paste(0, (0, 0, 8, 4))
    clear_grey = np.full((8, 8), 1000, np.uint16)
    clear_grey[4:] = 25700
    cases = {
        "cmyk.jpg": (colour.convert("CMYK"), {}, [[200, 100, 30]] * 2),
        "cmyk.tiff": (colour.convert("CMYK"), {}, [[200, 100, 30]] * 2),
        "half.png": (half, {}, [[224] * 3] * 2),  # a fifth of 100, the rest white
        "one.png": (Image.fromarray(np.arange(8)[:, None].repeat(8, 1) > 3), {}, [[0] * 3, [255] * 3]),
        "palette.png": (palette, {}, [[9] * 3, [200, 100, 30]]),
        "clear.png": (palette, {"transparency": 0}, [[255] * 3, [200, 100, 30]]),
        "clear16.png": (Image.fromarray(clear_grey), {"transparency": 1000}, [[255] * 3, [100] * 3]),
    }
    for name, (image, options, expected) in cases.items():
        image.save(tmp_path / name, **options)
        assert _read(tmp_path / name)[[0, 7], 0].tolist() == expected, name


def test_grey_of_16_bits_stands_upright(tmp_path):
    upper = np.zeros((8, 8), np.uint16)
    upper[:4] = 65535
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = _read(save_image(tmp_path / "turned.tiff", upper, exif=exif))
    assert turned[0].max() == 0 and turned[7].min() == 255


# What a file may cost ------------------------------------------------------------------------------------------------
def _png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    """A PNG of those sizes whose compressed data is ``rows``."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _many_scans(count: int) -> bytes:
    """A progressive JPEG with the last of its scans repeated."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG", progressive=True, quality=30)
    data = buffer.getvalue()
    last = data.rindex(photo.START_OF_SCAN)
    return data[:-2] + data[last:-2] * count + data[-2:]


def _bomb(kind: str, path: Path) -> Path:
    """A small file that asks for a lot."""
    if kind == "pixels":
        path.write_bytes(_png(20_000, 20_000, 1, 0, zlib.compress(bytes(2501 * 20_000), 9)))
    elif kind == "some pixels":
        path.write_bytes(_png(8_000, 8_000, 1, 0, zlib.compress(bytes(1001 * 8_000), 9)))
    elif kind == "scans":
        path.write_bytes(_many_scans(1500))
    elif kind == "bytes":
        with path.open("wb") as file:
            file.truncate(2**40)
    elif kind == "alpha":  # as many pixels as there may be, transparent
        path.write_bytes(_png(7000, 7000, 8, 6, zlib.compress(bytes(28_001 * 7000), 1)))
    elif kind == "text":
        text = b"tEXt" + b"a\0" + bytes(50_000_000)
        data = _png(8, 8, 8, 0, zlib.compress(bytes(9 * 8)))
        chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
        path.write_bytes(data[:33] + chunk + data[33:])
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("pixels", "PhotoTooLarge: Image size (400000000 pixels) exceeds limit"),
        ("some pixels", "PhotoTooLarge: 8000 x 8000 pixels are more than 50,000,000"),
        ("scans", "scans of a progressive JPEG are more than 100"),
        ("bytes", "PhotoTooLarge: 1,099,511,627,776 bytes are more than 67,108,864"),
        ("alpha", "read"),
        ("text", ""),
    ],
)
def test_no_file_costs_more_than_a_photo_may(tmp_path, kind, said):
    """512 MiB and 5 s at most, in a process of its own."""
    path = _bomb(kind, tmp_path / "bomb.png")
    command = [sys.executable, "-c", MEASURE, str(path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    kilobytes, seconds, what = done.stdout.strip().split("|")
    assert said in what
    assert int(kilobytes) < 512 * 1024
    assert float(seconds) < 5


def test_the_bombs_are_bombs(tmp_path):
    with Image.open(_bomb("scans", tmp_path / "scans")) as image:
        assert image.size == (64, 64)
    assert (tmp_path / "scans").stat().st_size < 2**22
    with (
        pytest.raises((Image.DecompressionBombError, Image.DecompressionBombWarning)),
        Image.open(_bomb("pixels", tmp_path / "pixels")) as image,
    ):
        image.load()
    assert (tmp_path / "pixels").stat().st_size < 2**17


def test_ordinary_progressive_photos_are_read(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(_many_scans(80))
    assert read_image(tmp_path / "photo.jpg", 8).shape == (8, 8, 3)


@pytest.mark.parametrize("kind", ["EPS", "GIF", "TIFF", "BMP", "PPM", "ICO", "TGA", "PCX", "PDF"])
def test_other_formats_are_refused_whatever_their_name(tmp_path, kind):
    path = tmp_path / "photo.png"
    Image.new("RGB", (16, 16)).save(path, kind)
    with pytest.raises(UnidentifiedImageError, match="it is no JPEG, PNG or WEBP file"):
        read_image(path, 8)


def test_a_photo_named_png_starts_no_program(tmp_path, monkeypatch):
    """Pillow hands EPS to whatever is called gs on PATH."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    Image.new("RGB", (16, 16)).save(tmp_path / "photo.png", "EPS")
    with pytest.raises(UnidentifiedImageError):
        read_image(tmp_path / "photo.png", 8)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "MPO"])
def test_the_formats_that_photos_have(tmp_path, kind):
    path = tmp_path / "photo"
    frames = {"save_all": True, "append_images": [Image.new("RGB", (16, 16))]} if kind == "MPO" else {}
    Image.new("RGB", (16, 16), (250, 250, 250)).save(path, kind, **frames)
    assert read_image(path, 8).min() > 240


def test_the_first_frame_of_an_animated_photo(tmp_path):
    first, *rest = (Image.new("RGB", (16, 16), (value, value, value)) for value in (250, 0, 0))
    for kind in ("WEBP", "PNG"):
        first.save(tmp_path / kind, kind, save_all=True, append_images=rest)
        assert read_image(tmp_path / kind, 8).min() > 240


def test_the_limit_of_pixels_can_be_set(tmp_path):
    Image.new("RGB", (100, 100)).save(tmp_path / "photo.png")
    with pytest.raises(PhotoTooLarge, match="100 x 100 pixels are more than 9,999"):
        read_image(tmp_path / "photo.png", 8, most_pixels=9_999)
    assert read_image(tmp_path / "photo.png", 8, most_pixels=10_000).shape == (8, 8, 3)


def test_large_photos_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(photo, "LARGE", 100)
    Image.new("RGB", (16, 16)).save(tmp_path / "photo.png")
    inside, most, right = [], [], photo.square_image

    def watched(image, side):
        inside.append(1)
        most.append(len(inside))
        threading.Event().wait(0.02)
        inside.pop()
        return right(image, side)

    monkeypatch.setattr(photo, "square_image", watched)
    threads = [threading.Thread(target=read_image, args=(tmp_path / "photo.png", 8)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 4


def test_strips_change_nothing(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (37, 23, 4), np.uint8)
    save_image(tmp_path / "photo.png", pixels)
    whole = read_image(tmp_path / "photo.png", 16)
    monkeypatch.setattr(photo, "LARGE", 23 * 5)
    assert np.array_equal(read_image(tmp_path / "photo.png", 16), whole)
