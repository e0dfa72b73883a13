"""Vectors to an engine of its own, where a catalogue outgrows one machine: Qdrant, a server or a folder.

Shapes: N products, H hidden.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

from fashionbert_fast.errors import InputError
from fashionbert_fast.progress import progress
from fashionbert_fast.retrieval import optional
from fashionbert_fast.retrieval.embedding_store import ARRAY, Vectors

BATCH = 256  # points of a request
# A point is named by its product, so that writing it again replaces it.
NAMES = uuid.UUID("6f1c3a52-7d0e-5b8e-9a55-0d6f6b1f0c11")
SECONDS = 60  # for a request
KEY = "QDRANT_API_KEY"


def to_qdrant(vectors: Path, url: str, collection: str) -> tuple[int, int]:
    """Write VECTORS to a collection of Qdrant, a point a product with its title, categories and photo's path.

    What is there already, of these very vectors, is not sent again: an interrupted upload goes on, a finished one costs
    a look. Products that the collection has and VECTORS has not stay.

    Args:
        url: of a server (``http...``; its key in the environment's QDRANT_API_KEY), or a folder for the local mode.
        collection: made where it is not there, with dot products: the vectors have length 1.

    Returns:
        how many products were written, and how many were there.

    Raises:
        InputError: no whole VECTORS, no Qdrant there, or a collection of other vectors.
    """
    optional("qdrant_client")
    source = Vectors.open(vectors)
    client = _client(url)
    try:
        return _upload(client, source, collection)
    except InputError:
        raise
    except Exception as error:  # the client has many: refused, timed out, not found, locked, not allowed
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        raise InputError(f"--url {url}: Qdrant does not take collection {collection:.80} ({reason}); see that it runs "
                         "there") from error  # fmt: skip
    finally:
        client.close()


def _client(url: str) -> Any:
    qdrant = optional("qdrant_client")
    try:
        if not url.startswith(("http://", "https://")):
            return qdrant.QdrantClient(path=url)
        return qdrant.QdrantClient(
            url=url, api_key=os.environ.get(KEY), timeout=SECONDS, check_compatibility=False
        )  # fmt: skip
    except Exception as error:  # a folder that another process uses, an address that is none
        reason = " ".join(str(error).split())[:150]
        raise InputError(f"--url {url}: cannot be used ({reason}); give Qdrant's address, say http://localhost:6333, "
                         "or a folder") from error  # fmt: skip


def _upload(client: Any, source: Vectors, collection: str) -> tuple[int, int]:
    from qdrant_client import models

    dims, made_of = source.manifest["dims"], source.manifest["files"][ARRAY]["sha256"]
    wanted = models.VectorParams(size=dims, distance=models.Distance.DOT)
    if not client.collection_exists(collection):
        client.create_collection(collection, vectors_config=wanted)
    found = client.get_collection(collection).config.params.vectors
    if not isinstance(found, models.VectorParams) or (found.size, found.distance) != (wanted.size, wanted.distance):
        raise InputError(f"--collection {collection}: holds other vectors than {dims} numbers compared by dot product; "
                         "choose another name")  # fmt: skip
    p, written = source.products, 0
    starts = range(0, len(p), BATCH)
    for start in progress(starts, len(starts), f"writing to {collection}"):
        rows = range(start, min(start + BATCH, len(p)))
        names = {str(uuid.uuid5(NAMES, p.ids[row])): row for row in rows}
        there = client.retrieve(collection, list(names), with_payload=["vectors"])
        known = {str(point.id) for point in there if (point.payload or {}).get("vectors") == made_of}
        points = [
            models.PointStruct(
                id=name, vector=source.vectors_NH[row].tolist(),
                payload={"id": p.ids[row], "title": p.titles[row], "category": p.categories[row],
                         "subcategory": p.subcategories[row], "image": p.images[row], "vectors": made_of},
            )
            for name, row in names.items() if name not in known
        ]  # fmt: skip
        if points:
            client.upsert(collection, points, wait=True)
        written += len(points)
    return written, len(p) - written
