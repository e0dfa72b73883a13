"""`train.fp8`: what it needs is said before any work; torchao is given the encoder's products and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from fashionbert_fast.engine.speed.fp8 import check_fp8, convert_to_fp8
from fashionbert_fast.errors import InputError
from fashionbert_fast.model.config import FashionBertConfig
from fashionbert_fast.model.encoder import MATMULS, Encoder, Packing
from fashionbert_fast.objectives.pretraining import FashionBertForPreTraining

SIZES = {"vocab_size": 10, "num_hidden_layers": 2, "num_attention_heads": 2, "patches": 4, "patch_feature_size": 24}


def _config(hidden_size: int = 32, intermediate_size: int = 64) -> FashionBertConfig:
    return FashionBertConfig(hidden_size=hidden_size, intermediate_size=intermediate_size, **SIZES)


@pytest.fixture
def fake_torchao(monkeypatch):
    converted = []
    for name in ("torchao", "torchao.float8"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["torchao.float8"].convert_to_float8_training = lambda linear: converted.append(linear) or linear
    return converted


def test_torchao_converts_the_encoders_products_alone(fake_torchao):
    model = FashionBertForPreTraining(_config())
    convert_to_fp8(model.encoder)
    assert len(fake_torchao) == 2 * len(MATMULS)
    for linear, (layer, name) in zip(fake_torchao, [(i, n) for i in range(2) for n in MATMULS], strict=True):
        assert linear.bias is None
        assert linear.weight is getattr(model.encoder.layers[layer], name).weight
        assert linear._compiled_call_impl is not None


def test_compiling_fuses_the_casts_and_changes_nothing(monkeypatch):
    """torchao's emulation of 8-bit products on this CPU."""
    float8 = pytest.importorskip("torchao.float8", reason="torchao is not installed")
    emulated = float8.Float8LinearConfig(emulate=True)
    monkeypatch.setattr("fashionbert_fast.engine.speed.fp8._converter", lambda: _emulating(float8, emulated))
    torch.manual_seed(0)
    encoder = Encoder(_config()).bfloat16().eval()
    x_TH = torch.randn(48, 32, dtype=torch.bfloat16, requires_grad=True)
    packing = Packing(torch.tensor([0, 20, 48], dtype=torch.int32), 28)

    def gradients() -> list[torch.Tensor]:
        return list(torch.autograd.grad(encoder(x_TH, packing).float().square().sum(), [x_TH, *encoder.parameters()]))

    encoder.convert_matmuls(_emulating(float8, emulated))
    eager = gradients()
    convert_to_fp8(encoder)
    for mine, theirs in zip(gradients(), eager, strict=True):
        assert torch.equal(mine, theirs)
    with torch.profiler.profile() as profile:
        gradients()
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["aten::mm"] == 3 * 2 * len(MATMULS)
    assert counts.get("aten::abs", 0) == counts.get("aten::clamp", 0) == 0


def _emulating(float8: ModuleType, config) -> Callable[[torch.nn.Linear], torch.nn.Module]:
    return lambda linear: float8.convert_to_float8_training(linear, config=config)


def test_what_is_missing_is_named(monkeypatch, fake_torchao):
    cuda = torch.device("cuda")
    with pytest.raises(InputError, match=r"train\.fp8: needs a CUDA device"):
        check_fp8(_config(), torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    with pytest.raises(InputError, match=r"train\.fp8: this device is sm_80"):
        check_fp8(_config(), cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    check_fp8(_config(), cuda)
    with pytest.raises(InputError, match=r"train\.fp8: needs model\.intermediate_size in multiples of 16, got 72"):
        check_fp8(_config(intermediate_size=72), cuda)
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.delitem(sys.modules, "torchao.float8")
    with pytest.raises(InputError, match=r"train\.fp8: torchao is not installed; pip install torchao"):
        check_fp8(_config(), cuda)


@pytest.mark.gpu
def test_fp8_products_are_near_those_of_bf16():
    pytest.importorskip("torchao")
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("8-bit products need sm_89")
    torch.manual_seed(0)
    encoder = Encoder(_config(128, 256)).to("cuda", torch.bfloat16).eval()
    packing = Packing(torch.tensor([0, 40, 64], dtype=torch.int32, device="cuda"), 64)
    hidden_TH = torch.randn(64, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    exact_TH = encoder(hidden_TH, packing).float()
    convert_to_fp8(encoder)
    low_TH = encoder(hidden_TH, packing)
    low_TH.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())
    assert (low_TH.float() - exact_TH).norm() < 0.1 * exact_TH.norm()
