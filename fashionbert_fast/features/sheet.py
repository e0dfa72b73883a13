"""A picture sheet: products of a store with photo, title, category and split, as a person would check them."""

from __future__ import annotations

import hashlib
import textwrap
import warnings
from collections import Counter
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fashionbert_fast.errors import InputError
from fashionbert_fast.features.photo import read_image
from fashionbert_fast.features.store import FeatureStore

COLUMNS = 6
TWIN_SHARE = 3  # one product in so many shown is taken from a set of twins, where there are any
SPLIT_COLOURS = {"train": "#444444", "validation": "#1d5fa8", "test": "#b0560f"}
TWIN_COLOURS = ["#d1495b", "#2a9d4a", "#7a4fa3", "#c98a00", "#1f77b4", "#8c564b", "#e377c2", "#17becf"]
LONE_TWIN = "#bbbbbb"  # the others of its set are not on the sheet


def choose_rows(store: FeatureStore, count: int) -> list[int]:
    """Up to ``count`` rows: spread over the store, then pairs of twins from sets spread over all sets."""
    count = min(count, len(store))
    twin_N = store.twin_N
    sets = [number for number, size in Counter(twin_N.tolist()).items() if size > 1]
    pairs: list[int] = []
    for index in np.unique(np.linspace(0, len(sets) - 1, min(len(sets), count // TWIN_SHARE // 2)).astype(int)):
        pairs += np.flatnonzero(twin_N == sets[index])[:2].tolist()
    others = np.setdiff1d(np.arange(len(store)), pairs)
    wanted = min(count - len(pairs), len(others))
    return others[np.linspace(0, len(others) - 1, wanted).astype(int)].tolist() + pairs


def write_sheet(store: FeatureStore, path: Path, count: int) -> dict[str, int]:
    """Draw ``count`` products into the PNG ``path``; twins are framed, each set in a colour of its own.

    Photos are shown as the encoder sees them: squashed to a square. Returns how many were "shown", are "missing", and
    are "changed": they read differently from when they were encoded.
    """
    rows = choose_rows(store, count)
    sizes = Counter(store.twin_N.tolist())
    together = [twins for twins, shown in Counter(store.twin_N[rows].tolist()).items() if shown > 1]
    colours = {twins: TWIN_COLOURS[i % len(TWIN_COLOURS)] for i, twins in enumerate(together)}
    lines = -(-len(rows) // COLUMNS)
    figure, axes = plt.subplots(lines, COLUMNS, figsize=(2.2 * COLUMNS, 3.0 * lines), squeeze=False)
    states: Counter[str] = Counter(shown=0, missing=0, changed=0)
    for axis in axes.flat:
        axis.axis("off")
    for axis, row in zip(axes.flat, rows, strict=False):
        states[_draw_row(axis, store, row)] += 1
        twins = int(store.twin_N[row])
        if sizes[twins] > 1:
            colour = colours.get(twins, LONE_TWIN)
            axis.add_patch(Rectangle((0, 0), 1, 1, transform=axis.transAxes, fill=False, color=colour, lw=4))
        _write_words(axis, store, row, sizes[twins])
    save_sheet(figure, path)
    return dict(states)


def save_sheet(figure: Figure, path: Path) -> None:
    """Write the figure to the PNG ``path`` and close it. InputError where it cannot be written."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # titles may be in any script
            figure.tight_layout(pad=0.8)
            figure.savefig(path, dpi=90, format="png")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error
    finally:
        plt.close(figure)


def draw_photo(axis: Axes, image: Path, side: int) -> np.ndarray | None:
    """Show a photo squashed to a square: its pixels, uint8 (S, S, 3); None, and words in its place, where it cannot be
    read."""
    try:
        image_SS3 = read_image(image, side)
    except Exception as error:  # a broken file can make Pillow raise nearly anything
        gone = isinstance(error, FileNotFoundError)
        axis.text(0.5, 0.5, "photo not here" if gone else "photo unreadable", ha="center", color="#888888",
                  transform=axis.transAxes)  # fmt: skip
        return None
    axis.imshow(image_SS3, aspect="auto")
    return image_SS3


def _draw_row(axis: Axes, store: FeatureStore, row: int) -> str:
    image_SS3 = draw_photo(axis, Path(store.images[row]), store.manifest.resize["image_pixels"])
    if image_SS3 is None:
        return "missing"
    digest = hashlib.blake2b(image_SS3, digest_size=16).hexdigest()
    return "shown" if store.image_hashes[row] in ("", digest) else "changed"


def _write_words(axis: Axes, store: FeatureStore, row: int, twins: int) -> None:
    title = textwrap.shorten(store.titles[row], 72, placeholder="...")
    options = {"transform": axis.transAxes, "fontsize": 7, "va": "top", "parse_math": False}
    axis.text(0, -0.03, textwrap.fill(title, 30), **options)
    kind = store.categories[row]
    if store.subcategories[row] != kind:
        kind += f" / {store.subcategories[row]}"
    words = f"{store.ids[row]}  {store.splits[row]}" + (f"  1 of {twins} twins" if twins > 1 else "")
    axis.text(0, -0.27, textwrap.shorten(kind, 40, placeholder="..."), color="#777777", **options)
    axis.text(0, -0.35, words, color=SPLIT_COLOURS.get(store.splits[row], "#444444"), **options)
