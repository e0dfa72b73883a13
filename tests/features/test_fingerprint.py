"""The probe: two runs of `prepare` whose features differ are told apart, by how much and by what."""

from __future__ import annotations

import base64
import hashlib
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from fashionbert_fast.errors import InputError
from fashionbert_fast.features import patch_encoder, photo
from fashionbert_fast.features.fingerprint import (
    TOLERANCE,
    TOLERANCE_ACROSS_TYPES,
    probe_difference,
    probe_of,
    probe_photo,
    relative_distance,
)
from fashionbert_fast.features.manifest import Manifest, require_same_features
from fashionbert_fast.features.patch_encoder import PatchEncoder, load_encoder
from fashionbert_fast.features.photo import read_image

SIDE = 64


def encoder_in(dtype: torch.dtype = torch.float32) -> PatchEncoder:
    encoder = load_encoder("random", grid=2, patch_pixels=SIDE // 2, device="cpu")
    encoder.module, encoder.dtype = encoder.module.to(dtype), dtype
    return encoder


@pytest.fixture(scope="module")
def encoder() -> PatchEncoder:
    return encoder_in()


@pytest.fixture(scope="module")
def reference(encoder) -> Manifest:
    return encoder.manifest()


def test_the_photo_never_changes():
    """Its pixels, by hash: another photo would set all stores prepared before apart from all prepared after."""
    with Image.open(io.BytesIO(probe_photo(SIDE))) as photo:
        assert photo.getexif()[0x0112] == 6 and photo.size == (99, 86)
        pixels = np.asarray(photo)
    assert pixels[0, 0].tolist() == [247] * 3 and pixels[43, 49].tolist() == [138, 120, 150]
    assert (
        hashlib.sha256(pixels.tobytes()).hexdigest()
        == "4ade28cb651af4973acf893def4b97a5e14a2b788b2aea08466c1aecca2caa92"
    )


def test_distance():
    assert relative_distance(np.array([3.0, 4.0]), np.array([3.0, 4.0])) == 0
    assert relative_distance(np.array([[3.0, 4.0]]), np.array([[0.0, 0.0]])) == 1
    assert relative_distance(np.array([6.0, 8.0]), np.array([3.0, 4.0])) == 0.5
    assert relative_distance(np.array([3.0, 4.0]), np.array([6.0, 8.0])) == 0.5
    assert relative_distance(np.zeros(2), np.zeros(2)) == 0
    assert np.isnan(relative_distance(np.array([np.nan]), np.zeros(1)))


def test_kept_values_are_spread_over_patches_and_dimensions():
    features_PD = np.arange(64 * 1280, dtype=np.float32).reshape(64, 1280)
    kept = np.frombuffer(base64.b64decode(probe_of(np.zeros((2, 2, 3), np.uint8), features_PD)["features"]), "<f4")
    assert len(kept) == 512 and kept[0] == 0 and kept[-1] == 64 * 1280 - 1
    assert len({int(v) // 1280 for v in kept}) == 64 and len({int(v) % 1280 for v in kept}) > 400


def test_the_same_run_again_agrees_and_survives_json(reference):
    again = json.loads(json.dumps(encoder_in().manifest().to_dict()))
    assert len(again["probe"]["photo"]) == 32
    require_same_features(reference, Manifest.from_dict(again), "two runs")
    assert probe_difference(reference.to_dict(), again) == ""


def test_bfloat16_agrees_with_float32_within_the_wider_tolerance(reference):
    other = encoder_in(torch.bfloat16).manifest()
    assert other.encoder["computed_in"] == "bfloat16" and reference.encoder["computed_in"] == "float32"
    require_same_features(reference, other, "two runs")
    ours, theirs = (np.frombuffer(base64.b64decode(m.probe["features"]), "<f4") for m in (reference, other))
    assert 0.001 < relative_distance(ours, theirs) < TOLERANCE_ACROSS_TYPES


CHANGES = ["bicubic", "no EXIF", "channels", "scaled", "one patch"]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_way_from_photo_to_features_is_named(encoder, reference, change, monkeypatch):
    resize, encode = Image.Image.resize, encoder.encode
    if change == "bicubic":
        monkeypatch.setattr(Image.Image, "resize", lambda i, size, _: resize(i, size, Image.Resampling.BICUBIC))
    elif change == "no EXIF":
        monkeypatch.setattr(photo.ImageOps, "exif_transpose", lambda image: image)
    elif change == "channels":
        monkeypatch.setattr(
            patch_encoder, "cut_patches", lambda x, g, cut=patch_encoder.cut_patches: cut(x, g).flip(-1)
        )
    elif change == "scaled":
        monkeypatch.setattr(encoder, "encode", lambda images_ISS3: encode(images_ISS3) * 1.05)
    elif change == "one patch":
        halved_P1 = torch.tensor([[0.5], [1], [1], [1]])
        monkeypatch.setattr(encoder, "encode", lambda images_ISS3: encode(images_ISS3) * halved_P1)
    other = encoder.manifest()
    other.versions = reference.versions | {"pillow": "1.0"}
    read = "differently" if change in ("bicubic", "no EXIF") else "alike"
    with pytest.raises(
        InputError, match=rf"run and store: .* apart on the same photo, .* {read}.*pillow .* against 1\.0"
    ):
        require_same_features(reference, other, "run and store")


def test_features_that_are_not_numbers_do_not_agree(encoder, reference):
    other = encoder.manifest()
    other.probe = probe_of(read_image(io.BytesIO(probe_photo(SIDE)), SIDE), np.full((4, 256), np.nan))
    assert "nan%" in probe_difference(reference.to_dict(), other.to_dict())


def test_the_tolerance_is_that_of_the_types(reference):
    features = np.random.default_rng(0).normal(size=(4, 256))
    for distance, types, agrees in [
        (0.9 * TOLERANCE, ("float32", "float32"), True),
        (1.1 * TOLERANCE, ("float32", "float32"), False),
        (1.1 * TOLERANCE, ("float32", "bfloat16"), True),
        (1.1 * TOLERANCE_ACROSS_TYPES, ("float32", "bfloat16"), False),
    ]:
        a, b = (reference.to_dict() | {"encoder": reference.encoder | {"computed_in": name}} for name in types)
        a["probe"] = probe_of(np.zeros(1, np.uint8), features)
        b["probe"] = probe_of(np.zeros(1, np.uint8), features * (1 - distance))
        assert (probe_difference(a, b) == "") == agrees
        assert agrees or f"{distance:.1%} apart" in probe_difference(a, b)


def test_manifests_without_a_probe_pass(reference):
    old = Manifest.from_dict({k: v for k, v in reference.to_dict().items() if k != "probe"})
    assert old.probe == {}
    require_same_features(reference, old, "new and old")
    require_same_features(old, reference, "old and new")
