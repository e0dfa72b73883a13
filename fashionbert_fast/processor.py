"""FashionBertProcessor: titles and photos to the tensors a model takes, made as the model's training data were.

Shapes: B pairs, L tokens of the longest title, I photos, S pixels of a side, P patches, D patch feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from PIL import Image

from fashionbert_fast.config import DataConfig, load_config
from fashionbert_fast.data.tokenizer import load_tokenizer
from fashionbert_fast.errors import InputError
from fashionbert_fast.features.encoding import on_cores, reason
from fashionbert_fast.features.fingerprint import probe_difference
from fashionbert_fast.features.manifest import DTYPES, Manifest, field_difference
from fashionbert_fast.features.patch_encoder import PatchEncoder, load_encoder
from fashionbert_fast.features.photo import read_image, square_image
from fashionbert_fast.files import read_json, write_json, written_whole
from fashionbert_fast.model.config import FashionBertConfig
from fashionbert_fast.run_directory import resolve_model_dir

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import BatchEncoding

CONFIG, MANIFEST = "processor_config.json", "patch_features.json"
Photo = str | Path | Image.Image


class FashionBertProcessor:
    """A model's tokenizer and its patch encoder, in the way of a processor of `transformers`.

    Three lines score a title with a photo:

    >>> from fashionbert_fast import FashionBertForPreTraining, FashionBertProcessor
    >>> model, processor = (c.from_pretrained("runs/shop") for c in (FashionBertForPreTraining, FashionBertProcessor))
    >>> model.score(**processor("red shirt", "photos/1001.jpg")).shape
    torch.Size([1])

    and three more a table of them:

    >>> import csv
    >>> rows = list(csv.DictReader(open("shop.csv")))
    >>> probabilities_B = model.score(**processor([r["title"] for r in rows], [r["photo"] for r in rows]))
    >>> len(probabilities_B) == len(rows)
    True

    Args:
        tokenizer: a fast tokenizer of `transformers`. manifest: of the patch features that the model was trained on.
        max_text_tokens: a longer title is cut, special tokens included.
        encoder: what `fashionbert prepare --encoder` takes; None: the one that the manifest names. Loaded with the
            first photo, so that titles with features of a store need none. device: of the encoder; None: a GPU where
            there is one.
    """

    def __init__(
        self, tokenizer, manifest: Manifest, *, max_text_tokens: int = DataConfig.max_text_tokens,
        encoder: str | Path | None = None, device: str | torch.device | None = None,
    ) -> None:  # fmt: skip
        self.tokenizer, self.manifest, self.max_text_tokens = tokenizer, manifest, max_text_tokens
        self.encoder_name = str(encoder or manifest.encoder["name"])
        self.device = device

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, encoder: str | Path | None = None, device: str | torch.device | None = None
    ) -> Self:
        """Read what `save_pretrained` wrote, or the processor of a model directory, a checkpoint or a run directory.

        Args:
            encoder: a local directory of the patch encoder, where its name alone does not find it. device: of it.

        Raises:
            InputError: no tokenizer is there, or nothing says which patch features the model was trained on.
        """
        path = Path(path)
        directory = path if (path / CONFIG).exists() else resolve_model_dir(path)
        if not (directory / MANIFEST).exists():
            raise InputError(f"{directory}: no {MANIFEST}, so nothing says which patches the model knows; give a run "
                             "of `fashionbert pretrain`, or what was saved of one")  # fmt: skip
        try:
            manifest = Manifest.from_dict(read_json(directory / MANIFEST))
        except (ValueError, TypeError) as error:
            raise InputError(f"{directory / MANIFEST}: {error}; copy it again from the model's run") from error
        return cls(load_tokenizer(directory), manifest, max_text_tokens=max_text_tokens(directory), encoder=encoder,
                   device=device)  # fmt: skip

    def save_pretrained(self, path: str | Path) -> None:
        """Write processor_config.json, patch_features.json and the tokenizer's files to the directory ``path``, which
        may be the model's. The patch encoder is not copied: the manifest names it, and knows it when it comes back."""
        path = Path(path)
        try:
            with written_whole(path) as folder:
                self.tokenizer.save_pretrained(folder)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror}); choose another directory") from error
        write_json(path / MANIFEST, self.manifest.to_dict())
        write_json(path / CONFIG, {"processor_class": type(self).__name__, "max_text_tokens": self.max_text_tokens})

    @cached_property
    def encoder(self) -> PatchEncoder:
        """The patch encoder. InputError where it cannot be had, or gives other features than the model was trained on.

        Compared as by `require_same_features`: what the manifests say, and what both made of the probe.
        """
        there, name = self.manifest, self.encoder_name
        remedy = f"give encoder=, a local directory of {there.encoder['name']}"
        try:
            encoder = load_encoder(name, grid=there.grid, patch_pixels=there.resize["patch_pixels"],
                                   device=self.device, patching=there.patching)  # fmt: skip
        except InputError as error:
            raise InputError(f"the model's patch encoder cannot be had here ({error}); {remedy}") from error
        here = encoder.manifest()
        difference = field_difference(there, here) or probe_difference(there.to_dict(), here.to_dict())
        if difference:
            raise InputError(f"encoder {name}: its patch features are not those the model was trained on ({difference})"
                             f"; {remedy}, or the versions of libraries that it was trained with")  # fmt: skip
        return encoder

    def __call__(
        self, text: str | Sequence[str], images: Photo | torch.Tensor | Sequence[Photo | torch.Tensor], *,
        return_tensors: str = "pt",
    ) -> BatchEncoding:  # fmt: skip
        """Title b with image b, as ``input_ids`` (B, L) int64, ``attention_mask`` (B, L) int64 and ``patch_features``
        (B, P, D) in the dtype of the features that the model was trained on; `model.score` takes them as keywords.

        A photo that several titles share is encoded once.

        Args:
            text: a title or a list of them.
            images: an image or as many as titles: paths, PIL images, or patch features (P, D) of a store's grid and
                encoder; (B, P, D) in one tensor will do. A large JPEG is decoded no finer than needed from a path,
                as `fashionbert prepare` does, from PIL as it is.
            return_tensors: "pt".

        Raises:
            InputError: no titles, not as many images, one that cannot be read or has another shape; and what `encoder`
                raises.
        """
        if return_tensors != "pt":
            raise InputError(f"return_tensors {return_tensors!r}: the model takes PyTorch tensors; leave it at 'pt'")
        titles = [text] if isinstance(text, str) else list(text)
        is_one = isinstance(images, (str, Path, Image.Image)) or (torch.is_tensor(images) and images.dim() == 2)
        pictures: list = [images] if is_one else list(images)  # pyright: ignore[reportArgumentType]  # is_one says so
        if not titles:
            raise InputError("text is empty; give at least one title")
        for b, title in enumerate(titles):
            if not isinstance(title, str):
                raise InputError(f"text[{b}] is {title!r}, not a title; leave the pair out or give a string")
        if len(titles) != len(pictures):
            raise InputError(f"text and images: {len(titles)} titles, but {len(pictures)} images; give one image a "
                             "title: to compare one photo with n titles write [photo] * n")  # fmt: skip
        encoded = self.tokenizer(
            titles, truncation=True, max_length=self.max_text_tokens, padding=True, padding_side="right",
            split_special_tokens=True, return_token_type_ids=False, return_attention_mask=True, return_tensors="pt",
        )  # fmt: skip
        encoded["patch_features"] = self.patch_features(pictures)
        return encoded

    def patch_features(self, pictures: Sequence[Photo | torch.Tensor]) -> torch.Tensor:
        """(B, P, D) in the dtype of the model's store, of each distinct photo encoded once and of the features that
        were given; raises what calling the processor does."""
        photos: dict[str | int, tuple[int, Photo]] = {}  # each distinct one, with where it first stands
        for b, picture in enumerate(pictures):
            if not torch.is_tensor(picture):
                photos.setdefault(_identity(picture), (b, picture))
        encoded_IPD = self._encode(list(photos.values())) if photos else []
        features = dict(zip(photos, encoded_IPD, strict=True))
        shape_PD, dtype = (self.manifest.patches, self.manifest.feature_size), DTYPES[self.manifest.dtype]
        rows = []
        for b, picture in enumerate(pictures):
            if torch.is_tensor(picture) and (picture.shape != shape_PD or not picture.is_floating_point()):
                raise InputError(f"images[{b}]: {picture.dtype} {tuple(picture.shape)}, not patch features {shape_PD}; "
                                 "give the photo, or its row of a store made like the model's")  # fmt: skip
            features_PD = picture if torch.is_tensor(picture) else features[_identity(picture)]
            rows.append(features_PD.detach().to("cpu", dtype))
        return torch.stack(rows)

    def _encode(self, photos: list[tuple[int, Photo]]) -> torch.Tensor:
        """(I, P, D) float32 of (place in the argument, photo); on a CPU each core reads and encodes its own."""
        encoder = self.encoder
        on_cpu = encoder.device.type == "cpu"

        def work(part: list[tuple[int, Photo]]) -> torch.Tensor:
            images_ISS3 = torch.from_numpy(np.stack([_pixels(b, photo, encoder.image_pixels) for b, photo in part]))
            return encoder.encode(images_ISS3) if on_cpu else images_ISS3

        size = encoder.batch_size
        parts = [photos[start : start + size] for start in range(0, len(photos), size)]
        results = on_cores(work, parts, one_thread=on_cpu) if len(parts) > 1 else map(work, parts)
        return torch.cat([result if on_cpu else encoder.encode(result) for result in results])


def _identity(photo: Photo) -> str | int:
    return str(photo) if isinstance(photo, (str, Path)) else id(photo)


def _pixels(b: int, photo: Photo, side: int) -> np.ndarray:
    """uint8 RGB (S, S, 3) of ``images[b]``."""
    if not isinstance(photo, (str, Path, Image.Image)):
        raise InputError(f"images[{b}]: a {type(photo).__name__}; give a path, a PIL image or patch features (P, D)")
    try:
        return square_image(photo, side) if isinstance(photo, Image.Image) else read_image(Path(photo), side)
    except Exception as error:  # a broken file can make Pillow raise nearly anything
        name = "the image" if isinstance(photo, Image.Image) else photo
        raise InputError(f"images[{b}]: {name} cannot be read ({reason(error, photo)}); give a photo that Pillow "
                         "opens, or leave the pair out") from error  # fmt: skip


def max_text_tokens(model_dir: Path) -> int:
    """Where titles are cut: as a processor saved there does, as in the run the checkpoint belongs to, else at the
    reference's 64 tokens; nowhere beyond the model's positions.

    Raises:
        InputError: the file that says so cannot be read.
    """
    if (model_dir / CONFIG).exists():
        saved = read_json(model_dir / CONFIG).get("max_text_tokens")
        if not isinstance(saved, int) or saved < 3:
            raise InputError(f"{model_dir / CONFIG}: max_text_tokens must be an integer of 3 or more, got {saved!r}")
        return saved
    run_config = model_dir.parent / "config.yaml"
    wanted = load_config(run_config).data.max_text_tokens if run_config.exists() else DataConfig().max_text_tokens
    return min(wanted, FashionBertConfig.from_json(model_dir / "config.json").max_position_embeddings)
