"""The encoder's parts that can be exchanged: apex's LayerNorm, converted products."""

from __future__ import annotations

import dataclasses
import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from fashionbert_fast.errors import InputError
from fashionbert_fast.kernels.dropout import draw_seed
from fashionbert_fast.model import encoder as encoder_module
from fashionbert_fast.model.config import FashionBertConfig
from fashionbert_fast.model.encoder import Encoder, Packing

CONFIG = FashionBertConfig(
    vocab_size=10, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
    initializer_range=0.2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip
PACKING = Packing(torch.tensor([0, 5, 12], dtype=torch.int32), 7)


@pytest.fixture
def hidden_TH():
    return torch.randn(12, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()


def _encoder(config: FashionBertConfig = CONFIG) -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder(config)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return encoder


def _gradients(encoder: Encoder, hidden_TH: torch.Tensor, packing: Packing = PACKING) -> list[torch.Tensor]:
    out_TH = encoder(hidden_TH, packing)
    return [out_TH, *torch.autograd.grad(out_TH.square().sum(), [hidden_TH, *encoder.parameters()])]


@pytest.fixture
def fake_apex(monkeypatch):
    """A package that looks like apex, with its signature; its function counts its calls."""
    calls = []

    def fused_layer_norm_affine(input, weight, bias, normalized_shape, eps=1e-6, memory_efficient=False):
        calls.append(tuple(input.shape))
        return F.layer_norm(input, normalized_shape, weight, bias, eps)

    names = ("apex", "apex.normalization", "apex.normalization.fused_layer_norm")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[names[-1]].fused_layer_norm_affine = fused_layer_norm_affine
    return calls


def test_apex_layer_norm_gives_the_same(fake_apex, hidden_TH):
    ours, apex = _encoder(), _encoder(dataclasses.replace(CONFIG, layer_norm="apex"))
    torch.testing.assert_close(_gradients(apex, hidden_TH), _gradients(ours, hidden_TH), atol=1e-4, rtol=1e-4)
    assert fake_apex == [(12, 16)] * 4  # two a layer


def test_dropout_beside_apex_drops_in_training_only(fake_apex, hidden_TH):
    config = dataclasses.replace(CONFIG, layer_norm="apex", hidden_dropout_prob=0.5, num_hidden_layers=1)
    encoder, packing = _encoder(config), dataclasses.replace(PACKING, seed=draw_seed("cpu"))
    assert not torch.equal(encoder(hidden_TH, packing), encoder(hidden_TH, packing))
    encoder.eval()
    assert torch.equal(encoder(hidden_TH, packing), encoder(hidden_TH, packing))


def test_apex_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "apex", None)  # an import of it fails, installed or not
    with pytest.raises(InputError, match=r"model\.layer_norm apex.*not installed"):
        Encoder(dataclasses.replace(CONFIG, layer_norm="apex"))


def test_nonsense_names_the_field_and_a_saved_model_does_not_say_apex(tmp_path):
    with pytest.raises(ValueError, match=r"model\.layer_norm"):
        FashionBertConfig(layer_norm="batch")
    (tmp_path / "config.json").write_text(dataclasses.replace(CONFIG, layer_norm="apex").to_json())
    assert FashionBertConfig.from_json(tmp_path / "config.json").layer_norm == "fused"


@pytest.mark.parametrize("act", ["gelu", "relu"])
def test_converted_products_are_called_and_nothing_else(monkeypatch, hidden_TH, act):
    """A converted module stands in for each product, with the layer's own weight and without a bias."""
    config = dataclasses.replace(CONFIG, hidden_act=act)
    plain, encoder, calls = _encoder(config), _encoder(config), []
    names = list(encoder.state_dict())

    class Converted(torch.nn.Module):
        def __init__(self, linear: torch.nn.Linear) -> None:
            super().__init__()
            assert linear.bias is None
            self.weight = linear.weight

        def forward(self, x):
            calls.append((x.shape[1], self.weight.shape[0]))
            return x @ self.weight.t()

    encoder.convert_matmuls(Converted)
    assert list(encoder.state_dict()) == names
    assert len(list(encoder.parameters())) == len(list(plain.parameters()))
    expected = _gradients(plain, hidden_TH)
    monkeypatch.setattr(encoder_module.F, "linear", lambda *_: pytest.fail("a product that was not converted"))
    torch.testing.assert_close(_gradients(encoder, hidden_TH), expected, atol=1e-4, rtol=1e-4)
    assert calls == [(16, 48), (16, 16), (16, 32), (32, 16)] * 2
