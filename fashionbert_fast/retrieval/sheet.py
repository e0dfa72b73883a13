"""An answer as a picture sheet: photos, best first, each with its title and how well it fits."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from fashionbert_fast.features.sheet import draw_photo, save_sheet
from fashionbert_fast.retrieval.search import Hit

COLUMNS, SIDE = 5, 224  # photos a line; pixels of a photo


def write_sheet(hits: Sequence[Hit], path: Path, query: str, image: Path | None = None) -> int:
    """Draw an answer into the PNG ``path``, under the query's words, behind its photo where it has one. Returns how
    many photos are not there or cannot be read."""
    cells = len(hits) + (image is not None)
    lines, columns = max(1, -(-cells // COLUMNS)), min(COLUMNS, max(1, cells))
    figure, axes = plt.subplots(lines, columns, figsize=(2.3 * max(columns, 2), 3.1 * lines + 0.4), squeeze=False)
    places = iter(axes.flat)
    for axis in axes.flat:
        axis.axis("off")
    if image is not None:
        axis = next(places)
        draw_photo(axis, image, SIDE)
        axis.set_title("query", fontsize=8, loc="left", color="#1d5fa8")
    missing = sum(not _draw_hit(axis, hit) for axis, hit in zip(places, hits, strict=False))
    figure.suptitle(textwrap.shorten(query, 100, placeholder="..."), x=0.02, ha="left", fontsize=10, parse_math=False)
    save_sheet(figure, path)
    return missing


def _draw_hit(axis: Axes, hit: Hit) -> bool:
    options = {"transform": axis.transAxes, "fontsize": 7, "va": "top", "parse_math": False}
    axis.set_title(f"{hit.rank}   {fit(hit)}", fontsize=8, loc="left")
    title = textwrap.shorten(hit.title, 72, placeholder="...")
    axis.text(0, -0.03, textwrap.fill(title, 30), **options)
    axis.text(0, -0.25, textwrap.shorten(f"{hit.id}  {hit.category}", 40, placeholder="..."), color="#777777",
              **options)  # fmt: skip
    return draw_photo(axis, Path(hit.image), SIDE) is not None


def fit(hit: Hit) -> str:
    """How well a product fits, for people."""
    return f"{hit.cosine:.3f}" if hit.probability is None else f"{hit.probability:.0%} match"
