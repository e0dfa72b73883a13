"""From a catalogue of titles and photos to a feature store: what `fashionbert prepare` does.

Photos are read and encoded batch by batch; rows follow the catalogue's order whatever the number of workers.

Shapes: I images of a batch, P patches, D feature.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from fashionbert_fast.catalogue.product import Problems
from fashionbert_fast.catalogue.queries import listed, read_queries
from fashionbert_fast.catalogue.read import read_catalogue
from fashionbert_fast.catalogue.splits import SPLIT_BY, hold_out, parse_split_by, split_warnings
from fashionbert_fast.errors import InputError
from fashionbert_fast.features.photo import MOST_PIXELS

if TYPE_CHECKING:  # torch takes seconds to import: `fashionbert prepare --help` answers without it
    from fashionbert_fast.features.store import Manifest

DEFAULT_ENCODER = "resnet50"


@dataclass
class PrepareReport:
    """What `prepare` did. ``problems``: kind -> rows left out. ``seconds`` includes loading the encoder."""

    store: str
    products: int
    skipped: int
    problems: dict[str, int]
    splits: dict[str, int]
    leaks: dict[str, dict[str, int]]  # of each split but train: see `twins.leaks`
    queries: int  # pairs of a query and a product
    warnings: list[str]  # about the split
    seconds: float
    images_per_second: float  # reading, encoding and writing, without loading the encoder
    encoder: str
    trained: bool
    feature_size: int
    fingerprint: str


def prepare(
    source: Path | str, out: Path | str, *, encoder: str = DEFAULT_ENCODER, grid: int = 8,
    patch_pixels: int | None = None, patching: str = "separate", views: int = 1, holdout: float = 0.1,
    test: float = 0.0, seed: int = 0, split_by: str = SPLIT_BY, images: Path | None = None,
    queries: Path | None = None, columns: Mapping[str, str] | None = None, delimiter: str | None = None,
    encoding: str | None = None, strict: bool = False, dtype: str = "bfloat16", batch_size: int | None = None,
    workers: int | None = None, device: str | None = None, overwrite: bool = False, roots: Sequence[Path] = (),
    most_pixels: int = MOST_PIXELS,
) -> PrepareReport:  # fmt: skip
    """Read ``source``, encode its photos and write the feature store ``out``.

    Args:
        source, images, columns, delimiter, encoding, roots: see `catalogue.read_catalogue`. queries: a table of further
            queries, see `catalogue.queries.read_queries`.
        encoder: see `backbones.load_backbone`. grid: patches a side. patching: see `patch_encoder`. patch_pixels: of a
            side of a patch as the encoder sees it; None: the encoder's own default. views: of each photo that are
            encoded, the first as it is, see `views.draw_view`.
        holdout, test: shares of the products whose split becomes "validation" and "test", by a hash of seed and id,
            where the source has no split of its own. split_by: what rows must share to land in the same split, some of
            "group,title,photo", or "none". strict: stop at the first row that cannot be used.
        dtype: of the stored features. batch_size: images of a forward pass. workers: threads. None: chosen to suit.
        most_pixels: a photo of more is left out.

    Raises InputError on bad input; then ``out`` is as it was.
    """
    started = time.perf_counter()
    source, out = Path(source), Path(out)
    check_options(holdout, test, dtype, batch_size, workers, most_pixels, patching, views)
    by = parse_split_by(split_by)
    from fashionbert_fast.features.store import StoreWriter, check_out

    check_out(out, overwrite)
    problems = Problems(strict)
    products = read_catalogue(
        source, problems=problems, images=images, columns=columns, delimiter=delimiter, encoding=encoding, roots=roots
    )
    if queries is not None:
        products = read_queries(Path(queries), products, problems, columns).given_to(products)

    from fashionbert_fast.features.encoding import PHOTO_PROBLEMS, encode_products
    from fashionbert_fast.features.patch_encoder import load_encoder

    patch_encoder = load_encoder(encoder, grid=grid, patch_pixels=patch_pixels, batch_size=batch_size, device=device,
                                 patching=patching)  # fmt: skip
    if not patch_encoder.backbone.trained:
        print(f"WARNING: encoder {patch_encoder.backbone.name} IS NOT TRAINED: its features are random projections; "
              "use them to try things out, not for results", file=sys.stderr, flush=True)  # fmt: skip
    manifest = patch_encoder.manifest()
    manifest.source, manifest.seed = str(source), seed
    manifest.created = datetime.now(UTC).isoformat(timespec="seconds")
    began = time.perf_counter()
    with StoreWriter(
        out, patches=grid * grid, feature_size=patch_encoder.feature_size, dtype=dtype, overwrite=overwrite,
        expected=len(products), views=views,
    ) as writer:  # fmt: skip
        encoded = encode_products(
            products, patch_encoder, problems, dtype=dtype, workers=workers, most_pixels=most_pixels, views=views,
            seed=seed,
        )  # fmt: skip
        for good, features in encoded:
            writer.append(good, features)
        if not writer.columns["id"]:
            first = next((problem for problem in problems.items if problem.kind in PHOTO_PROBLEMS), "not listed")
            raise InputError(f"{source}: no photo can be used; the first: {first}")
        warnings = assign_splits(writer.columns, manifest, holdout, test, seed, by)
        pairs = sum(len(listed(cell)) for cell in writer.columns["queries"])
        manifest = writer.commit(manifest, problems)
    now = time.perf_counter()
    for warning in warnings:
        print(f"WARNING: {warning}", file=sys.stderr, flush=True)
    return PrepareReport(
        str(out), manifest.products, problems.count, manifest.problems, manifest.splits, manifest.leaks, pairs,
        warnings, now - started, manifest.products / (now - began), patch_encoder.backbone.name,
        patch_encoder.backbone.trained, manifest.feature_size, manifest.fingerprint,
    )  # fmt: skip


def check_options(
    holdout: float, test: float, dtype: str, batch_size: int | None, workers: int | None, most_pixels: int,
    patching: str, views: int,
) -> None:  # fmt: skip
    """InputError on nonsense."""
    for option, share in (("--holdout", holdout), ("--test", test)):
        if not 0 <= share < 1:
            raise InputError(f"{option} {share}: must lie in [0, 1), say 0.1")
    if holdout + test >= 1:
        raise InputError(f"--test {test}: with --holdout {holdout} nothing is left to train on; lower one of them")
    if dtype not in ("bfloat16", "float16", "float32"):
        raise InputError(f"--dtype {dtype}: must be bfloat16, float16 or float32")
    if patching not in ("separate", "map", "hypercolumns"):
        raise InputError(f"--patching {patching}: must be separate, map or hypercolumns")
    if most_pixels < 1:
        raise InputError(f"--max-megapixels {most_pixels / 1e6:g}: must be above 0")
    for option, value in (("--views", views), ("--batch-size", batch_size), ("--workers", workers)):
        if value is not None and value < 1:
            raise InputError(f"{option} {value}: must be 1 or more")


def assign_splits(
    columns: dict[str, list[str]], manifest: Manifest, holdout: float, test: float, seed: int, by: Sequence[str]
) -> list[str]:
    """Fill in ``columns["split"]`` and what the manifest says of it; returns warnings. Photos have been hashed by now.

    A source's own splits are respected; a product without one, among others that have one, is for training.
    """
    if any(columns["split"]):
        columns["split"] = [split or "train" for split in columns["split"]]
        return []
    columns["split"] = hold_out(columns, holdout, seed, by, test)
    manifest.holdout, manifest.test, manifest.split_by = holdout, test, ",".join(by) or "none"
    return split_warnings(columns, holdout, by, test)
