"""From square photos to patch features, in one of three ways (`--patching`):

    separate      cut into a grid, each patch a photo of its own for the backbone: one vector each, as in the paper
    map           the backbone sees the photo once, and its last feature map is the patches (`feature_map`)
    hypercolumns  the same, with the colours and the maps of all earlier stages beside it

The photo is resized once, to grid * patch_pixels: each patch arrives at the backbone's input size, or has its stride.

Shapes: I images, S pixels of a side, P = grid * grid patches, B = I * P, h = patch_pixels, D feature.
"""

from __future__ import annotations

import io
import platform
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fashionbert_fast.distributed import pick_device
from fashionbert_fast.errors import InputError
from fashionbert_fast.features.backbones import Backbone, load_backbone
from fashionbert_fast.features.feature_map import LARGEST_IMAGE, FeatureMap, patch_side_and_width
from fashionbert_fast.features.fingerprint import probe_of, probe_photo
from fashionbert_fast.features.manifest import Manifest
from fashionbert_fast.features.photo import read_image

INTERPOLATION = "bilinear"  # Pillow's, which widens its window when it shrinks


class PatchEncoder:
    """A backbone made ready for one grid and one device. ``manifest()`` says what its features are.

    On a GPU it computes in bfloat16 (float16 before Ampere), on a CPU in bfloat16 where the processor has it, else in
    float32. Batch normalisation is folded into the convolutions first, in float32.
    """

    def __init__(
        self, backbone: Backbone, *, grid: int = 8, patch_pixels: int | None = None, batch_size: int | None = None,
        device: torch.device | str = "cpu", patching: str = "separate",
    ) -> None:  # fmt: skip
        self.backbone, self.grid, self.patching = backbone, grid, patching
        self.patch_pixels, self.feature_size = patch_pixels or backbone.patch_pixels, backbone.feature_size
        self.whole = patching != "separate"  # whether the backbone sees the photo as a whole
        if self.whole:
            self.patch_pixels, self.feature_size = patch_side_and_width(
                backbone, grid, patch_pixels, patching == "hypercolumns"
            )
        self.image_pixels = grid * self.patch_pixels
        self.device = torch.device(device)
        self.batch_size = batch_size or self._default_batch_size()
        self.dtype = compute_dtype(self.device)
        h = self.image_pixels if self.whole else self.patch_pixels
        example_B3hw = torch.rand(2, 3, h, h, generator=torch.Generator().manual_seed(0))
        self._probe(example_B3hw[:1])
        module = FeatureMap(backbone.module, grid, patching == "hypercolumns") if self.whole else backbone.module
        module = fold_batch_norm(module, example_B3hw)
        self.module = module.to(self.device, self.dtype).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        # (x / 255 - mean) / std as one multiply and add
        std = torch.tensor(backbone.std, device=self.device)
        self.scale_3 = 1 / (255 * std)
        self.shift_3 = -torch.tensor(backbone.mean, device=self.device) / std

    def _default_batch_size(self) -> int:
        """Images of a forward pass: few on a CPU, so that activations stay in its cache, on a GPU enough to fill it."""
        pixels = 2**25 if self.device.type == "cuda" else 2**18  # measured: 64 patches of 64 px, or 4 photos of 256 px
        return max(1, pixels // self.image_pixels**2)

    def _probe(self, example_B3hw: torch.Tensor) -> None:
        try:
            with torch.inference_mode():
                self.backbone.module(example_B3hw)
        except Exception as error:  # whatever the architecture raises on a size it cannot take
            reason = " ".join(str(error).split())[:120]
            raise InputError(f"--patch-pixels {self.patch_pixels}: {self.backbone.name} cannot take it ({reason}); "
                             f"leave it out for {self.backbone.patch_pixels}") from error  # fmt: skip

    @torch.inference_mode()
    def encode(self, images_ISS3: torch.Tensor) -> torch.Tensor:
        """uint8 RGB images [I, S, S, 3] with S = grid * patch_pixels -> float32 features [I, P, D] on the CPU.

        Patches run row by row from the top left. The batch size moves the result by float noise only.
        """
        parts = [self._encode(part) for part in images_ISS3.split(self.batch_size)]
        return torch.cat(parts).float().cpu()

    def _encode(self, images_ISS3: torch.Tensor) -> torch.Tensor:
        images_ISS3 = images_ISS3.to(self.device, non_blocking=True)
        patches_Bhh3 = images_ISS3 if self.whole else cut_patches(images_ISS3, self.grid)
        pixels_Bhh3 = torch.addcmul(self.shift_3, patches_Bhh3.float(), self.scale_3).to(self.dtype)
        features = self.module(pixels_Bhh3.permute(0, 3, 1, 2))  # a view: channels_last
        return features.reshape(len(images_ISS3), self.grid**2, -1)

    def manifest(self) -> Manifest:
        """A manifest with the four things that make the features what they are, and the probe that proves them."""
        b, side = self.backbone, self.image_pixels
        image_SS3 = read_image(io.BytesIO(probe_photo(side)), side)
        features_1PD = self.encode(torch.from_numpy(image_SS3.copy())[None])
        return Manifest(
            grid=self.grid,
            resize={
                "image_pixels": self.image_pixels,
                "patch_pixels": self.patch_pixels,
                "interpolation": INTERPOLATION,
            },
            encoder={
                "name": b.name,
                "architecture": b.architecture,
                "pooling": ("mean" if self.whole else b.pooling),
                "weights_sha256": b.weights_sha256,
                "feature_size": self.feature_size,
                "trained": b.trained,
                "computed_in": str(self.dtype).removeprefix("torch."),
            },
            normalisation={"mean": list(b.mean), "std": list(b.std)},
            patching=self.patching,
            probe=probe_of(image_SS3, features_1PD[0].numpy()),
            versions=library_versions(),
        )


def load_encoder(
    name: str, *, grid: int = 8, patch_pixels: int | None = None, batch_size: int | None = None,
    device: str | torch.device | None = None, patching: str = "separate",
) -> PatchEncoder:  # fmt: skip
    """The encoder ``name`` (see `backbones.load_backbone`) on ``device`` (default: a GPU where there is one)."""
    if grid < 1:
        raise InputError(f"--grid {grid}: must be 1 or more; the reference has 8")
    most = LARGEST_IMAGE // grid
    if patch_pixels is not None and not 8 <= patch_pixels <= most:
        raise InputError(f"--patch-pixels {patch_pixels}: must lie in [8, {most}] for a grid of {grid}")
    target = pick_device(device)
    return PatchEncoder(
        load_backbone(name), grid=grid, patch_pixels=patch_pixels, batch_size=batch_size, device=target,
        patching=patching,
    )  # fmt: skip


def compute_dtype(device: torch.device) -> torch.dtype:
    """Where bfloat16 is native it is twice as fast or more; where it is emulated it is slower than float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    features = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if features.get("avx512_bf16") or features.get("amx_bf16") else torch.float32


def cut_patches(images_ISS3: torch.Tensor, grid: int) -> torch.Tensor:
    """[I, S, S, C] -> [I * grid * grid, S / grid, S / grid, C], row by row from the top left, contiguous."""
    images, side, _, channels = images_ISS3.shape
    h = side // grid
    grid_of_patches = images_ISS3.view(images, grid, h, grid, h, channels).transpose(2, 3)
    return grid_of_patches.reshape(images * grid * grid, h, h, channels)


def fold_batch_norm(module: nn.Module, example_B3hw: torch.Tensor) -> nn.Module:
    """``module`` with each BatchNorm2d folded into the convolution registered just before it (in place).

    Registration order is not proof of execution order, so the result is compared with the original on ``example`` in
    float32, and undone where they differ.
    """
    undo = []
    with torch.inference_mode():
        before = module(example_B3hw)
    for parent in list(module.modules()):
        for (conv_name, conv), (norm_name, norm) in pairwise(list(parent.named_children())):
            if not (isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)):
                continue
            if conv.out_channels == norm.num_features:
                undo += [(parent, conv_name, conv), (parent, norm_name, norm)]
                setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, nn.Identity())
    with torch.inference_mode():
        after = module(example_B3hw)
    if not torch.allclose(before, after, rtol=1e-3, atol=1e-4 * float(before.abs().max())):
        for parent, name, child in undo:
            setattr(parent, name, child)
    return module


def library_versions() -> dict[str, str]:
    """Versions of what the features were computed with: for information, not part of the fingerprint."""
    found = {"python": platform.python_version()}
    for package in ("torch", "transformers", "pillow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
