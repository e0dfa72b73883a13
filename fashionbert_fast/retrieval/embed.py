"""Vectors of a store's products, and of single texts and photos: `FashionBert.vectors` of a checkpoint.

Shapes: n rows asked for, U distinct ones, B sequences, N text tokens, I photos, P patches, D patch feature, H hidden.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import torch
from PIL import Image

from fashionbert_fast.data.batch import PackedPairs
from fashionbert_fast.data.packing import pack_unmasked
from fashionbert_fast.data.titles import TokenizedTitles
from fashionbert_fast.distributed import is_main, pick_device
from fashionbert_fast.errors import InputError
from fashionbert_fast.evaluation.run import load_scorer, split_rows
from fashionbert_fast.features.encoding import reason
from fashionbert_fast.features.photo import read_image
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.inference.scorer import DEFAULT_BATCH_SIZE
from fashionbert_fast.model.embeddings import TEXT_SEGMENT
from fashionbert_fast.objectives.pretraining import FashionBertForPreTraining
from fashionbert_fast.processor import FashionBertProcessor
from fashionbert_fast.retrieval.embedding_store import MANIFEST, Products, check_out, write_vectors
from fashionbert_fast.run_directory import resolve_model_dir, sha256

Photo = str | Path | BinaryIO
QUERIES = 1000  # titles that an index's recall is measured with


def embed_store(
    checkpoint: Path, data: Path, out: Path, *, of: str = "both", split: str = "all", precision: str = "fp32",
    dtype: str = "float32", device: str | None = None, batch_size: int | None = None, overwrite: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Write VECTORS (`retrieval.embedding_store`) of a store's products to the directory ``out``; returns its manifest.
    Under a launcher every process calls this and embeds its share; the first one writes.

    Args:
        checkpoint: a run, a checkpoint or a model directory. of: "text", "image", or "both" in one sequence.
        precision: "bf16" runs a bfloat16 copy of the model. dtype: of the file. batch_size: sequences of a forward
            pass; it moves results by float noise only.

    Raises:
        InputError: no such model, store or split; patch features of another encoder; nothing can be written there.
    """
    check_out(out, MANIFEST, overwrite)
    store = FeatureStore.open(data)
    rows = split_rows(store, split, data)
    scorer, model_dir = load_scorer(checkpoint, store, data, batch_size, device, precision)
    vectors_nH = scorer.embed(rows, of).astype(dtype)
    asked = np.random.default_rng(0).permutation(rows)[:QUERIES]
    asked_nH = scorer.embed(asked, "query")
    manifest = {
        "of": of, "split": split, "precision": precision, "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {"path": str(model_dir.resolve()), "sha256": sha256(model_dir / "model.safetensors")},
        "store": {"path": str(Path(data).resolve()), "content_sha256": store.manifest.content_sha256},
        "features": store.manifest.to_dict(),
    }  # fmt: skip
    return write_vectors(out, vectors_nH, asked_nH, Products.of_store(store, rows), manifest) if is_main() else manifest


class Embedder:
    """One model's vectors of texts and photos that are in no store, and its probability that two belong together.

    >>> from fashionbert_fast.retrieval.embed import Embedder
    >>> embedder = Embedder.from_pretrained("runs/shop")
    >>> embedder.text(["red shirt", "black boots"]).shape
    (2, 16)
    >>> embedder.items(["red shirt"], ["photos/1001.jpg"]) @ embedder.image(["photos/1001.jpg"]).T > 0.5
    array([[ True]])

    Args:
        model: in eval mode, on its device. processor: of the same run. precision: as in `embed_store`.
    """

    def __init__(
        self, model: FashionBertForPreTraining, processor: FashionBertProcessor, *, precision: str = "fp32"
    ) -> None:
        self.model = model if precision == "fp32" else copy.deepcopy(model).to(torch.bfloat16).eval()
        self.processor = processor
        self.device = model.patch_embeddings.projection.weight.device

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, encoder: str | Path | None = None, device: str | None = None, precision: str = "fp32"
    ) -> Self:
        """Of a run, a checkpoint or a model directory. ``encoder``: as of `FashionBertProcessor.from_pretrained`.

        Raises:
            InputError: no model is there, or nothing says which patches it knows.
        """
        target, model_dir = pick_device(device), resolve_model_dir(Path(path))
        processor = FashionBertProcessor.from_pretrained(model_dir, encoder=encoder, device=target)
        return cls(FashionBertForPreTraining.from_pretrained(model_dir).to(target), processor, precision=precision)

    def text(self, queries: Sequence[str]) -> np.ndarray:
        """Vectors of queries, float32 (B, H): in the segment of queries, where the model has one."""
        return self._vectors(queries, self._nothing, self.model.query_segment)

    def image(self, photos: Sequence[Photo]) -> np.ndarray:
        """Vectors of photos alone, float32 (B, H): paths or open binary files."""
        return self._vectors((), self.patches(photos), TEXT_SEGMENT)

    def items(self, titles: Sequence[str], photos: Sequence[Photo]) -> np.ndarray:
        """Vectors of products, title b with photo b in one sequence, float32 (B, H), as `embed_store` makes them."""
        if len(titles) != len(photos):
            raise InputError(f"titles and photos: {len(titles)} and {len(photos)}; give a photo a title")
        return self._vectors(titles, self.patches(photos), TEXT_SEGMENT)

    def query(self, text: str | None, features_1PD: torch.Tensor | None) -> np.ndarray:
        """The vector (H,) of a query: words, a photo (its `patches`), or both in one sequence."""
        features_IPD = self._nothing if features_1PD is None else features_1PD
        return self._vectors(() if text is None else (text,), features_IPD, self.model.query_segment)[0]

    def patches(self, photos: Sequence[Photo]) -> torch.Tensor:
        """Patch features (I, P, D) of photos, in the type of the model's store.

        Raises:
            InputError: naming the photo that cannot be read; or the encoder cannot be had, or is another.
        """
        side, images = self.processor.encoder.image_pixels, []
        for photo in photos:
            try:
                images.append(Image.fromarray(read_image(Path(photo) if isinstance(photo, str) else photo, side)))
            except Exception as error:  # a broken file can make Pillow raise nearly anything
                name = photo if isinstance(photo, (str, Path)) else "the photo"
                raise InputError(f"{name}: cannot be read as a photo ({reason(error, photo)}); give a JPEG, PNG or "
                                 "WebP file") from error  # fmt: skip
        return self.processor.patch_features(images) if images else self._nothing

    @torch.inference_mode()
    def match(self, titles: Sequence[str], features_IPD: torch.Tensor) -> np.ndarray:
        """The probability that title b and photo b belong together, float64 (B,), by the joint model; where there is
        one of either, it meets all of the other."""
        count = max(len(titles), len(features_IPD))
        titles_B = [titles[b % len(titles)] for b in range(count)]
        parts = []
        for start in range(0, count, DEFAULT_BATCH_SIZE):
            chosen = torch.arange(start, min(count, start + DEFAULT_BATCH_SIZE))
            image_index_B = chosen % len(features_IPD)
            distinct, image_index_B = image_index_B.unique(return_inverse=True)
            batch = self._pack(titles_B[start : start + len(chosen)], features_IPD[distinct], image_index_B)
            logits_B2 = self.model.alignment_logits(batch).double()
            parts.append(torch.sigmoid(logits_B2[:, 1] - logits_B2[:, 0]).cpu().numpy())
        return np.concatenate(parts) if parts else np.empty(0)

    @property
    def _nothing(self) -> torch.Tensor:
        config = self.model.config
        return torch.empty(0, config.patches, config.patch_feature_size)

    @torch.inference_mode()
    def _vectors(self, texts: Sequence[str], features_IPD: torch.Tensor, segment: int) -> np.ndarray:
        """(B, H) of texts, photos, or text b with photo b."""
        parts = [np.empty((0, self.model.vector_size), np.float32)]
        for start in range(0, max(len(texts), len(features_IPD)), DEFAULT_BATCH_SIZE):
            span = slice(start, start + DEFAULT_BATCH_SIZE)
            features_BPD = features_IPD[span]
            batch = self._pack(texts[span], features_BPD, torch.arange(len(features_BPD)))
            parts.append(self.model.vectors(batch.in_segment(segment)).cpu().numpy())
        return np.concatenate(parts)

    def _pack(self, texts: Sequence[str], features_IPD: torch.Tensor, image_index_B: torch.Tensor) -> PackedPairs:
        tokenizer = self.processor.tokenizer
        if len(texts) == 0:
            id_N, lengths_B = np.empty(0, np.int64), np.zeros(len(image_index_B), np.int64)
        else:
            titles = TokenizedTitles(texts, tokenizer, self.processor.max_text_tokens)
            id_N, lengths_B = titles.ids, np.diff(titles.offsets)
        batch = pack_unmasked(id_N, lengths_B, features_IPD, image_index_B, tokenizer.pad_token_id)
        return batch.to(self.device)
