"""Patches off the feature maps of a CNN that sees the whole photo once, instead of a photo of its own for each.

A place of the map has seen its surroundings too, and its pixels went through the backbone once and smaller: see
docs/data.md for what that saves. A patch is the mean of the places that it covers: of the last map, or, as
hypercolumns (Hariharan et al., Hypercolumns for Object Segmentation and Fine-grained Localization, 2015), of the pixels
and of every stage's map, side by side. What a classifier's last map has lost, colours above all, the first ones have.

Shapes: I photos, S pixels of a side, P = grid * grid patches, D feature.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fashionbert_fast.errors import InputError
from fashionbert_fast.features.backbones import Backbone

PROBE_PIXELS = 256  # of the image that tells a backbone's stride: eight times the 32 of nearly all
LARGEST_IMAGE = 4096  # pixels of a side, after resizing
MULTIPLE = 16  # hypercolumns are filled up to it with zeros: products of odd sizes are slow


class FeatureMap(nn.Module):
    """The patches of a ``grid``, row by row from the top left: [I, 3, S, S] -> [I, P, D]. hypercolumns: of the pixels
    and of every stage's map, else of the last map."""

    def __init__(self, trunk: nn.Module, grid: int, hypercolumns: bool) -> None:
        super().__init__()
        self.trunk, self.grid, self.hypercolumns = trunk, grid, hypercolumns

    def forward(self, pixels_I3SS: torch.Tensor) -> torch.Tensor:
        if self.hypercolumns:
            maps = [pixels_I3SS, *self.trunk.stages(pixels_I3SS)]  # pyright: ignore[reportCallIssue]  # not a tensor
        else:
            maps = [self.trunk.feature_map(pixels_I3SS)]  # pyright: ignore[reportCallIssue]
        means_IDgg = torch.cat([F.adaptive_avg_pool2d(of_stage.float(), self.grid) for of_stage in maps], dim=1)
        patches_IPD = means_IDgg.flatten(2).transpose(1, 2)
        return F.pad(patches_IPD, (0, -patches_IPD.shape[2] % MULTIPLE if self.hypercolumns else 0))


def patch_side_and_width(
    backbone: Backbone, grid: int, patch_pixels: int | None, hypercolumns: bool
) -> tuple[int, int]:  # fmt: skip
    """How many pixels of a side make a patch, and how many numbers it has: found by a probe.

    patch_pixels: a multiple of the backbone's stride; None: that stride, so that a patch is one place of the last map.
    InputError where it is none, or where an image of so many pixels has no map of as many places.
    """
    how = "hypercolumns" if hypercolumns else "map"
    remedy = "use --patching separate, or a CNN such as efficientnet-lite0 or resnet50"
    failed = f"--patching {how}: {backbone.name} gives no map of {grid} x {grid} features"
    try:
        _, high, _ = _map_shape(backbone, PROBE_PIXELS)
        stride = PROBE_PIXELS // high
        side = patch_pixels or stride
        if side % stride:
            raise InputError(f"--patch-pixels {side}: with --patching {how} a patch has a multiple of the pixels of "
                             f"{backbone.name}'s stride, {stride}; leave it out for {stride}")  # fmt: skip
        if grid * side > LARGEST_IMAGE:
            raise InputError(f"--grid {grid}: with patches of {side} pixels a photo has more than {LARGEST_IMAGE} a "
                             "side; lower it")  # fmt: skip
        _, *found = _map_shape(backbone, grid * side)
        pixels = torch.zeros(1, 3, grid * side, grid * side)
        with torch.inference_mode():
            width = FeatureMap(backbone.module, grid, hypercolumns)(pixels).shape[2]
    except InputError:
        raise
    except Exception as error:  # whatever an architecture raises on a size it cannot take
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{failed} ({reason}); {remedy}") from error
    if found != [grid * side // stride] * 2:
        raise InputError(f"{failed}, but {found[0]} x {found[1]} of {grid * side} pixels; {remedy}")
    return side, width


@torch.inference_mode()
def _map_shape(backbone: Backbone, pixels: int) -> tuple[int, int, int]:
    """(D, h, w) of the map of a square image. ValueError where there is none."""
    found = backbone.module.feature_map(torch.zeros(1, 3, pixels, pixels))  # pyright: ignore[reportCallIssue]
    if found.dim() != 4:
        raise ValueError(f"{backbone.architecture} gives a sequence of tokens")
    return tuple(found.shape[1:])
