"""Patches off the last feature map of a CNN that sees the whole photo once, instead of a photo of its own for each.

A place of the map has seen its surroundings too, and its pixels went through the backbone once and smaller: see
docs/data.md for what that saves.

Shapes: I photos, S pixels of a side, P = grid * grid patches, D feature.
"""

from __future__ import annotations

import torch
from torch import nn

from fashionbert_fast.errors import InputError
from fashionbert_fast.features.backbones import Backbone

PROBE_PIXELS = 256  # of the image that tells a backbone's stride: eight times the 32 of nearly all
LARGEST_IMAGE = 4096  # pixels of a side, after resizing


class FeatureMap(nn.Module):
    """The places of ``trunk``'s last feature map, row by row from the top left: [I, 3, S, S] -> [I, P, D]."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, pixels_I3SS: torch.Tensor) -> torch.Tensor:
        map_IDhw = self.trunk.feature_map(pixels_I3SS)  # pyright: ignore[reportCallIssue]  # not a tensor
        return map_IDhw.flatten(2).transpose(1, 2)


def stride_and_width(backbone: Backbone, grid: int) -> tuple[int, int]:
    """How many pixels of a side make one place of the feature map, and how many numbers a place has: found by a probe.

    InputError where an image of grid * stride pixels has no map of grid x grid places.
    """
    remedy = "use --patching separate, or a CNN such as efficientnet-lite0 or resnet50"
    failed = f"--patching map: {backbone.name} gives no map of {grid} x {grid} features"
    try:
        _, high, _ = _map_shape(backbone, PROBE_PIXELS)
        stride = PROBE_PIXELS // high
        if grid * stride > LARGEST_IMAGE:
            raise InputError(f"--grid {grid}: at {backbone.name}'s stride of {stride} a photo has more than "
                             f"{LARGEST_IMAGE} pixels a side; lower it")  # fmt: skip
        width, *found = _map_shape(backbone, grid * stride)
    except InputError:
        raise
    except Exception as error:  # whatever an architecture raises on a size it cannot take
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{failed} ({reason}); {remedy}") from error
    if found != [grid, grid]:
        raise InputError(f"{failed}, but {found[0]} x {found[1]} of {grid * stride} pixels; {remedy}")
    return stride, width


@torch.inference_mode()
def _map_shape(backbone: Backbone, pixels: int) -> tuple[int, int, int]:
    """(D, h, w) of the map of a square image. ValueError where there is none."""
    found = backbone.module.feature_map(torch.zeros(1, 3, pixels, pixels))  # pyright: ignore[reportCallIssue]
    if found.dim() != 4:
        raise ValueError(f"{backbone.architecture} gives a sequence of tokens")
    return tuple(found.shape[1:])
