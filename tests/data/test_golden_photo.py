"""A photo of four colours through reading, cutting and normalising, against numbers worked out by hand.

A backbone that only averages shows what reaches it: channels in order, patches row by row, mean and deviation applied.
"""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from fashionbert_fast.data.backbones import Backbone
from fashionbert_fast.data.patch_encoder import PatchEncoder, cut_patches, read_image

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 153, 51)]  # top left, top right, bottom left, bottom right
MEAN, STD = (0.4, 0.5, 0.2), (0.2, 0.5, 0.25)
# (colour / 255 - mean) / std, by hand: three channels of each of the four patches.
GOLDEN = [[3.0, -1.0, -0.8], [-2.0, 1.0, -0.8], [-2.0, -1.0, 3.2], [3.0, 0.2, 0.0]]


class Average(torch.nn.Module):
    def forward(self, pixels_B3hw: torch.Tensor) -> torch.Tensor:
        return pixels_B3hw.mean((2, 3))


@pytest.fixture
def photo(tmp_path):
    image = Image.new("RGB", (32, 32))
    for i, colour in enumerate(COLOURS):
        image.paste(colour, (16 * (i % 2), 16 * (i // 2), 16 * (i % 2) + 16, 16 * (i // 2) + 16))
    image.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_colours_reach_the_backbone_in_their_channels_and_places(photo):
    backbone = Backbone(Average(), "average", "average", "mean", 3, 16, "0" * 64, True, MEAN, STD)
    encoder = PatchEncoder(backbone, grid=2)
    encoder.dtype = torch.float32  # whatever this processor would compute in
    pixels = torch.from_numpy(read_image(photo, 32).copy())
    assert [pixels[y, x].tolist() for y, x in ((0, 0), (0, 31), (31, 0), (31, 31))] == [list(c) for c in COLOURS]
    features_IPD = encoder.encode(pixels[None])
    torch.testing.assert_close(features_IPD, torch.tensor([GOLDEN]), atol=1e-5, rtol=0)
    stated = encoder.manifest().normalisation
    assert (tuple(stated["mean"]), tuple(stated["std"])) == (MEAN, STD)


def test_patches_run_row_by_row_and_are_not_turned():
    """Every pixel has a number of its own: patch 1 is the one to the right of patch 0."""
    pixels_ISS3 = torch.arange(36).view(1, 6, 6, 1)
    patches = cut_patches(pixels_ISS3, 3)[..., 0]
    assert patches[0].tolist() == [[0, 1], [6, 7]]
    assert patches[1].tolist() == [[2, 3], [8, 9]]
    assert patches[3].tolist() == [[12, 13], [18, 19]]
