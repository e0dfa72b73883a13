"""Further views of a photo: what they show, that they follow the product, how they are stored, which one is read."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import manifest_of
from PIL import Image

from fashionbert_fast.catalogue.product import Product
from fashionbert_fast.cli import main
from fashionbert_fast.errors import InputError
from fashionbert_fast.features.photo import PhotoTooLarge, read_image
from fashionbert_fast.features.store import FeatureStore, StoreWriter
from fashionbert_fast.features.views import View, draw_view, read_views

N, V, P, D = 7, 3, 4, 5
SIDE = 32
QUICK = ["--encoder", "random:0:16", "--grid", "2", "--device", "cpu", "--dtype", "float32", "--holdout", "0"]


def test_views_are_drawn_as_promised():
    """By the id, whatever else is in the catalogue; within the photo."""
    drawn = [draw_view(0, str(i), 1) for i in range(4000)]
    scales = np.array([view.scale for view in drawn])
    assert 0.6 <= scales.min() < 0.605 and 0.945 < scales.max() <= 0.95 and abs(scales.mean() - 0.775) < 0.005
    assert abs(np.mean([view.mirrored for view in drawn]) - 0.5) < 0.03
    for place in ("left", "top"):
        share = np.array([getattr(view, place) / (1 - view.scale) for view in drawn])
        assert 0 <= share.min() < 0.01 and 0.99 < share.max() <= 1 and abs(share.mean() - 0.5) < 0.02
    assert (
        abs(
            np.corrcoef([(view.left / (1 - view.scale), view.top / (1 - view.scale)) for view in drawn], rowvar=False)[
                0, 1
            ]
        )
        < 0.05
    )
    assert draw_view(0, "7", 1) == drawn[7] != draw_view(0, "7", 2) != draw_view(1, "7", 2)


@pytest.fixture
def photo(tmp_path) -> Path:
    """Red rises to the right, green downwards; 100 by 50 pixels."""
    y, x = np.mgrid[0:50, 0:100]
    Image.fromarray(np.stack([2 * x, 5 * y, 0 * x], -1).astype(np.uint8)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_what_a_view_shows(photo):
    """By hand: 0.2 to 0.8 of the width are the pixels 20 to 80, of red 40 to 160; 0.1 to 0.7 of the height 5 to 35."""
    view = View(0.2, 0.1, 0.6, mirrored=False)
    plain, mirrored = read_views(photo, SIDE, [view, View(0.2, 0.1, 0.6, mirrored=True)])
    assert plain.shape == (SIDE, SIDE, 3) and plain.dtype == np.uint8
    assert np.array_equal(mirrored, plain[:, ::-1])
    red, green = plain[:, :, 0].astype(int), plain[:, :, 1].astype(int)
    step = 60 / SIDE  # pixels of the photo in one of the view
    assert abs(red[0, 0] - 2 * (20 + step / 2 - 0.5)) <= 2 and abs(red[0, -1] - 2 * (80 - step / 2 - 0.5)) <= 2
    assert abs(green[0, 0] - 5 * (5 + step / 4 - 0.5)) <= 3 and abs(green[-1, 0] - 5 * (35 - step / 4 - 0.5)) <= 3
    (whole,) = read_views(photo, SIDE, [View(0.0, 0.0, 1.0, mirrored=False)])
    assert np.array_equal(whole, read_image(photo, SIDE))
    at_the_edge = View(np.nextafter(0.4, 1), np.nextafter(0.4, 1), 0.6, mirrored=False)  # their sum exceeds 1
    assert read_views(photo, SIDE, [at_the_edge])[0].shape == (SIDE, SIDE, 3)
    with pytest.raises(PhotoTooLarge):
        read_views(photo, SIDE, [view], most_pixels=4999)


def test_a_large_jpeg_is_decoded_finely_enough(tmp_path):
    """Stripes of 2 pixels: decoded at a quarter, as the whole photo is, they would be grey in the view too."""
    stripes = np.where(np.arange(512) // 2 % 2, 255, 0).astype(np.uint8)
    Image.fromarray(np.broadcast_to(stripes, (512, 512)).copy()).save(tmp_path / "p.jpg", quality=95)
    (view,) = read_views(tmp_path / "p.jpg", 128, [View(0.0, 0.0, 0.6, mirrored=False)])
    assert view.std() > 3 * read_image(tmp_path / "p.jpg", 128).std()


# The store ------------------------------------------------------------------------------------------------------------
def some_products(count: int = N) -> list[Product]:
    return [Product(f"p{i}", f"title {i}", "Tops", "Tees", Path(f"{i}.jpg"), "train") for i in range(count)]


@pytest.fixture
def made(tmp_path) -> tuple[Path, torch.Tensor]:
    features_NVPD = torch.randn(N, V, P, D, generator=torch.Generator().manual_seed(0)).bfloat16()
    with StoreWriter(tmp_path / "s", patches=P, feature_size=D, views=V) as writer:
        writer.append(some_products()[:3], features_NVPD[:3])
        writer.append(some_products()[3:], features_NVPD[3:])
        writer.commit(manifest_of(2, D))
    return tmp_path / "s", features_NVPD


def test_a_view_of_each_row(made):
    path, features_NVPD = made
    store = FeatureStore.open(path)
    assert store.manifest.views == V and json.loads((path / "manifest.json").read_text())["views"] == V
    rows, views = np.array([6, 0, 3, 3]), np.array([2, 0, 1, 2])
    assert torch.equal(store.features(rows), features_NVPD[rows, 0])
    for opened in (store, pickle.loads(pickle.dumps(store))):
        assert torch.equal(opened.features(rows, views), features_NVPD[rows, views])
    assert torch.equal(torch.from_numpy(store.raw(5)).view(torch.bfloat16), features_NVPD[5])
    for wrong in ([0, 0, 0, V], [0, 0, 0, -1]):
        with pytest.raises(IndexError, match="views"):
            store.features(rows, wrong)
    assert store.manifest.fingerprint == manifest_of(2, D).fingerprint  # of the same features as with one view


@pytest.mark.parametrize("view", range(V))
def test_damage_to_any_view_is_found(made, view):
    path, _ = made
    before = FeatureStore.open(path).manifest.content_sha256
    raw_NVPD = np.memmap(path / "features.bin", dtype="<u2", mode="r+", shape=(N, V, P, D))
    raw_NVPD[4, view, 1, 1] ^= 1
    raw_NVPD.flush()
    with pytest.raises(InputError, match=r"features\.bin: row 4 \(id p4\): its features do not match"):
        FeatureStore.open(path)
    (damage,) = FeatureStore.open(path, check_rows=False).verify()
    assert damage.row == 4
    with StoreWriter(path, patches=P, feature_size=D, views=V, overwrite=True) as writer:
        writer.append(some_products(), torch.from_numpy(np.array(raw_NVPD)).view(torch.bfloat16))
        writer.commit(manifest_of(2, D))
    assert FeatureStore.open(path).manifest.content_sha256 != before


def test_no_view_may_be_nan_or_of_another_shape(tmp_path):
    features_NVPD = torch.zeros(N, V, P, D)
    features_NVPD[5, 2, 0, 0] = torch.nan
    with StoreWriter(tmp_path / "s", patches=P, feature_size=D, views=V) as writer:
        with pytest.raises(ValueError, match="NaN or infinity in those of id p5"):
            writer.append(some_products(), features_NVPD)
        with pytest.raises(ValueError, match=r"not \(7, 3, 4, 5\)"):
            writer.append(some_products(), features_NVPD[:, 0])


def test_a_store_of_another_number_of_views_does_not_open(made):
    path, _ = made
    with (path / "features.bin").open("ab") as file:
        file.write(b"\0" * 2 * P * D)
    with pytest.raises(InputError, match=r"\(7, 3, 4, 5\) bfloat16 take 840"):
        FeatureStore.open(path)


# prepare --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("patching", ["separate", "map"])
def test_prepare_encodes_the_views_it_draws(tmp_path, patching, capsys):
    from fashionbert_fast.features.patch_encoder import load_encoder

    generator, folder = np.random.default_rng(0), tmp_path / "shop"
    (folder / "images").mkdir(parents=True)
    for i in range(5):
        pixels = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40, 60)).save(folder / "images" / f"{i}.jpg", quality=95)
    (folder / "images" / "1.jpg").write_bytes(b"not a photo")
    (folder / "shop.csv").write_text("id,title\n" + "".join(f"{i},shirt {i}\n" for i in range(5)))
    words = ["prepare", str(folder / "shop.csv"), *QUICK, "--patching", patching, "--batch-size", "2"]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    assert main([*words, "--out", str(tmp_path / "three"), "--views", "3", "--seed", "7"]) == 0
    one, three = (FeatureStore.open(tmp_path / name) for name in ("one", "three"))
    rows = three.rows()
    assert three.ids == ["0", "2", "3", "4"] == one.ids and three.verify() == []
    assert (one.features(rows) - three.features(rows)).abs().max() <= 0.02 * one.features(rows).abs().max()
    side = three.manifest.resize["image_pixels"]
    encoder = load_encoder("random:0:16", grid=2, device="cpu", patching=patching)
    for row, identity in enumerate(three.ids):
        drawn = [draw_view(7, identity, view) for view in (1, 2)]
        images_2SS3 = torch.from_numpy(np.stack(read_views(folder / "images" / f"{identity}.jpg", side, drawn)))
        expected_2PD = encoder.encode(images_2SS3)
        found_2PD = three.features([row, row], [1, 2])
        assert (found_2PD - expected_2PD).abs().max() <= 0.02 * expected_2PD.abs().max()
        assert (found_2PD[0] - found_2PD[1]).abs().max() > 0.1 * expected_2PD.abs().max()
    assert three.manifest.views == 3 and one.manifest.views == 1
    assert main([*words, "--out", str(tmp_path / "none"), "--views", "0"]) == 2
    assert "--views 0: must be 1 or more" in capsys.readouterr().err
