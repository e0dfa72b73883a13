"""A query to products: its vector, the nearest of an index, and, where asked, the joint model's opinion of those.

Shapes: R products to rerank, P patches, D patch feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from fashionbert_fast.errors import InputError
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.retrieval import TOP
from fashionbert_fast.retrieval.embed import Embedder, Photo
from fashionbert_fast.retrieval.index import Index
from fashionbert_fast.run_directory import resolve_model_dir, sha256

RERANKED = 100  # of the nearest products


@dataclass(frozen=True)
class Hit:
    """A product of an answer. ``cosine`` is of its vector with the query's; ``probability``, by the joint model, that
    it fits the query; None where nothing was reranked."""

    rank: int  # from 1
    row: int  # of the index
    id: str
    title: str
    category: str
    subcategory: str
    image: str
    cosine: float
    probability: float | None = None


class Searcher:
    """Answers queries from an index, with the model that made its vectors.

    >>> from fashionbert_fast.retrieval.search import Searcher
    >>> searcher = Searcher.open("indices/shop")
    >>> [hit.rank for hit in searcher.search("red shirt", top=3)]
    [1, 2, 3]
    >>> searcher.search(image="photos/1001.jpg", rerank=True)[0].probability <= 1
    True
    """

    def __init__(self, index: Index, embedder: Embedder, data: Path | None = None) -> None:
        self.index, self.embedder = index, embedder
        self.data = Path(data or index.manifest["store"]["path"])

    @classmethod
    def open(
        cls, path: Path | str, *, checkpoint: Path | None = None, data: Path | None = None,
        encoder: str | Path | None = None, device: str | None = None, precision: str = "fp32",
    ) -> Self:  # fmt: skip
        """Open INDEX and the model that it names.

        Args:
            checkpoint, data: where the model and the store lie, when they are no longer where they were. encoder: a
                directory of the patch encoder, where its name does not find it. device, precision: of the model.

        Raises:
            InputError: the index is not whole; the model is not there, or not the one that made the vectors.
        """
        index = Index.open(path)
        known = index.manifest["model"]
        model_dir = _model_dir(index, checkpoint)
        if sha256(model_dir / "model.safetensors") != known["sha256"]:
            raise InputError(f"{path}: its vectors are of another model than {model_dir}; give --checkpoint that of "
                             f"{known['path']}, or embed and index the store with this one")  # fmt: skip
        embedder = Embedder.from_pretrained(model_dir, encoder=encoder, device=device, precision=precision)
        dims, makes = index.manifest["dims"], embedder.model.vector_size
        if dims != makes:  # of a manifest that somebody made up
            raise InputError(f"{path}: vectors of {dims} numbers, but {model_dir} makes {makes}; index them again")
        return cls(index, embedder, data)

    @cached_property
    def store(self) -> FeatureStore:
        """The store that the vectors were made of, which reranking for words reads photos from."""
        remedy = "give --data its place, or leave --rerank out"
        try:
            store = FeatureStore.open(self.data)
        except InputError as error:
            raise InputError(f"reranking for words reads the store ({error}); {remedy}") from error
        rows, known = self.index.products.row_N, self.index.manifest["store"]["content_sha256"]
        if store.manifest.content_sha256 != known or not 0 <= rows.min() <= rows.max() < len(store):
            raise InputError(f"{self.data}: is another store than {self.index.path} was made of; {remedy}, or embed "
                             "and index this one")  # fmt: skip
        return store

    def warm_up(self) -> None:
        """Do what the first query would wait for. InputError where the patch encoder cannot be had."""
        self.embedder.text(["shirt"])
        _ = self.embedder.processor.encoder

    @cached_property
    def categories(self) -> list[str]:
        """The categories of the index's products, in the order of the alphabet."""
        return sorted({*self.index.products.categories} - {""})

    def search(
        self, text: str | None = None, image: Photo | None = None, *, top: int = TOP, rerank: bool = False,
        category: str | None = None,
    ) -> list[Hit]:  # fmt: skip
        """The best ``top`` products, fewer where there are fewer.

        Args:
            text: the query's words. image: a photo, its path or an open file. Both: products near the two together.
            rerank: the nearest `RERANKED` are put in the order of the probability that the alignment head gives the
                words with each photo, the photo with each title, or the mean of the two.
            category: only products of this category.

        Raises:
            InputError: nothing to search for, a photo that cannot be read, no such category, the store is gone.
        """
        if top < 1:
            raise InputError(f"top {top}: must be 1 or more")
        if text is None and image is None:
            raise InputError("nothing to search for; give --text WORDS, --image FILE or both")
        if text is not None and not self._has_words(text):
            raise InputError(f"text {text!r:.50}: no words to search for; describe a product, say 'red striped shirt'")
        features_1PD = None if image is None else self.embedder.patches([image])
        query_H = self.embedder.query(text, features_1PD)
        nearest = self.index.search(query_H, max(top, RERANKED) if rerank else top, self._rows(category))
        if not rerank:
            return [self._hit(rank, row, cosine) for rank, (row, cosine) in enumerate(nearest[:top], start=1)]
        row_R = np.array([row for row, _ in nearest], dtype=np.int64)
        probability_R = self._probabilities(row_R, text, features_1PD)
        order = np.argsort(-probability_R, kind="stable")[:top].tolist()
        return [
            self._hit(rank, nearest[i][0], nearest[i][1], float(probability_R[i]))
            for rank, i in enumerate(order, start=1)
        ]

    def _has_words(self, text: str) -> bool:
        """Whether anything of it is a token: of spaces and control characters nothing is."""
        return bool(self.embedder.processor.tokenizer.tokenize(text))

    def _rows(self, category: str | None) -> np.ndarray | None:
        if category is None:
            return None
        wanted = category.casefold()
        rows = [row for row, name in enumerate(self.index.products.categories) if name.casefold() == wanted]
        if not rows:
            has = ", ".join(self.categories) or "none"
            raise InputError(f"category {category:.50}: no product has it; the index has {has:.300}")
        return np.array(rows, dtype=np.int64)

    def _probabilities(self, row_R: np.ndarray, text: str | None, features_1PD: torch.Tensor | None) -> np.ndarray:
        found: list[np.ndarray] = []
        if text is not None:
            photos_RPD = self.store.features(self.index.products.row_N[row_R])
            found.append(self.embedder.match([text], photos_RPD))
        if features_1PD is not None:
            titles_R = [self.index.products.titles[row] for row in row_R]
            found.append(self.embedder.match(titles_R, features_1PD))
        return np.mean(found, axis=0)

    def _hit(self, rank: int, row: int, cosine: float, probability: float | None = None) -> Hit:
        p = self.index.products
        return Hit(rank, row, p.ids[row], p.titles[row], p.categories[row], p.subcategories[row], p.images[row],
                   cosine, probability)  # fmt: skip


def _model_dir(index: Index, checkpoint: Path | None) -> Path:
    named = index.manifest["model"]["path"]
    try:
        return resolve_model_dir(Path(checkpoint or named))
    except InputError as error:
        if checkpoint is not None:
            raise
        raise InputError(f"{index.path}: the model that made its vectors is not at {named}; give --checkpoint DIR, "
                         "where it lies now") from error  # fmt: skip


def as_json(hits: Sequence[Hit]) -> list[dict[str, Any]]:
    return [asdict(hit) for hit in hits]
