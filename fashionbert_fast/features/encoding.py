"""Reading and encoding the photos of a catalogue, batch by batch, on as many workers as there are cores.

Shapes: I photos of a batch, V views of each, J = I * V, S pixels of a side, P patches, D feature.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch

from fashionbert_fast.catalogue.product import Problems, Product
from fashionbert_fast.features.manifest import DTYPES
from fashionbert_fast.features.patch_encoder import PatchEncoder
from fashionbert_fast.features.photo import MOST_PIXELS, read_image
from fashionbert_fast.features.views import draw_view, read_views
from fashionbert_fast.progress import progress

T = TypeVar("T")
R = TypeVar("R")
PHOTO_PROBLEMS = UNREADABLE, NON_FINITE = "unreadable image", "non-finite features"


@dataclass
class Photos:
    """A batch of products whose photo was read, each with the hash of its photo."""

    products: list[Product]
    images_JSS3: torch.Tensor  # uint8, the views of a photo one after another
    bad: list[tuple[Product, str]]  # rows whose photo was not, and why
    spares: list[Product]  # rows that were tried because another was bad


def encode_products(
    products: Sequence[Product],
    encoder: PatchEncoder,
    problems: Problems,
    *,
    dtype: str,
    workers: int | None = None,
    most_pixels: int = MOST_PIXELS,
    views: int = 1,
    seed: int = 0,
) -> Iterator[tuple[list[Product], torch.Tensor]]:
    """Batches (products, features [I, P, D] in ``dtype``) in order, without the products whose photo cannot be used.

    views: more than 1: [I, V, P, D] of the photo as it is and of those that ``seed`` draws (`views.draw_view`).

    In the place of a product whose photo cannot be read comes the first of its spare rows whose photo can.

    On a CPU each worker reads and encodes its own batch on one thread: unlike one batch on all threads it needs no
    barriers, and slows down gracefully where the machine is shared (measured: ten times faster on two busy cores).
    On a GPU the workers read ahead and one stream encodes.
    """
    side, size = encoder.image_pixels, encoder.batch_size
    batches = [products[start : start + size] for start in range(0, len(products), size)]
    on_cpu = encoder.device.type == "cpu"

    def work(batch: Sequence[Product]) -> tuple[Photos, torch.Tensor | None]:
        photos = read_batch(batch, side, most_pixels, views, seed)
        return photos, encoder.encode(photos.images_JSS3) if on_cpu and photos.products else None

    results = on_cores(work, batches, workers=workers, one_thread=on_cpu)
    for photos, encoded_JPD in progress(results, len(batches), "encoding photos"):
        if photos.spares:
            problems.withdraw_duplicates(photos.spares)
        for product, what in photos.bad:
            problems.add(product.table, product.row, UNREADABLE, what, id=product.id)
        if photos.products:
            features_JPD = encoder.encode(photos.images_JSS3) if encoded_JPD is None else encoded_JPD
            features = features_JPD if views == 1 else features_JPD.unflatten(0, (-1, views))
            yield without_nonfinite(photos.products, features.to(DTYPES[dtype]), problems)


def without_nonfinite(
    products: list[Product], features: torch.Tensor, problems: Problems
) -> tuple[list[Product], torch.Tensor]:
    """The products whose features are numbers; the others, such as those beyond float16, become problems."""
    finite_I = features.isfinite().flatten(1).all(1)
    if finite_I.all():
        return products, features
    for product, finite in zip(products, finite_I.tolist(), strict=True):
        if not finite:
            what = f"the features of image {product.image} hold NaN or infinity (as {features.dtype})"
            problems.add(product.table, product.row, NON_FINITE, what, id=product.id)
    return [p for p, finite in zip(products, finite_I.tolist(), strict=True) if finite], features[finite_I]


def read_batch(
    batch: Sequence[Product], side: int, most_pixels: int = MOST_PIXELS, views: int = 1, seed: int = 0
) -> Photos:
    """The photos of ``batch``, ``side`` pixels high and wide; for one that cannot be read, that of a spare row."""
    good, images, bad, spares = [], [], [], []
    for product in batch:
        for row in (product, *product.spares):
            if row is not product:
                spares.append(row)
            try:
                image_SS3 = read_image(row.image, side, most_pixels=most_pixels)
                drawn = [draw_view(seed, row.id, view) for view in range(1, views)]
                parts = read_views(row.image, side, drawn, most_pixels=most_pixels) if drawn else []
            except Exception as error:  # a broken file can make Pillow raise nearly anything
                bad.append((row, f"image {row.image} cannot be read ({reason(error, row.image)})"))
                continue
            images += [image_SS3, *parts]
            image_hash = hashlib.blake2b(image_SS3, digest_size=16).hexdigest()
            good.append(replace(row, image_hash=image_hash, queries=product.queries))
            break
    stacked_JSS3 = np.stack(images) if images else np.empty((0, side, side, 3), np.uint8)
    return Photos(good, torch.from_numpy(stacked_JSS3), bad, spares)


def reason(error: Exception, image: object) -> str:
    """Why ``image`` could not be read, in a line that does not name it again."""
    return (" ".join(str(error).replace(str(image), "the file").split()) or type(error).__name__)[:150]


def on_cores(
    function: Callable[[T], R], items: Sequence[T], *, workers: int | None = None, one_thread: bool = True
) -> Iterator[R]:
    """``function`` of the items, in order, on ``workers`` threads, by default one a core.

    one_thread: torch's operators run on one thread in each.
    """
    count = workers or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with one_thread_each(one_thread), ThreadPoolExecutor(count) as pool:
        yield from ordered(pool, function, items, ahead=2 * count)


def ordered(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Sequence[T], ahead: int) -> Iterator[R]:
    """``function`` of the items, in order, never more than ``ahead`` of them begun before they are asked for.

    Nothing new begins once the consumer stops: an interrupted job ends at once.
    """
    waiting: deque[Future[R]] = deque()
    upcoming = iter(items)
    try:
        for item in upcoming:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


@contextlib.contextmanager
def one_thread_each(wanted: bool) -> Iterator[None]:
    """While it lasts, threads started run torch's operators on one thread each."""
    before = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
