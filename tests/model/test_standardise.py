"""model.standardise_features: the folded layer on raw features is the unfolded one on standardised features."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from bert_directory import TINY, bert_directory
from conftest import TINY_MODEL

from fashionbert_fast import FashionBertConfig, FashionBertForPreTraining
from fashionbert_fast.config import load_config
from fashionbert_fast.engine.build import build_model
from fashionbert_fast.errors import InputError
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.kernels.masked_patch_embed import masked_patch_embed_reference
from fashionbert_fast.model.embeddings import PatchEmbeddings

P, D, H = 4, 24, 16


def some_layer(dtype: torch.dtype = torch.float64) -> PatchEmbeddings:
    torch.manual_seed(0)
    config = FashionBertConfig(vocab_size=9, hidden_size=H, num_attention_heads=2, patches=P, patch_feature_size=D)
    layer = PatchEmbeddings(config, site=0).to(dtype)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer


def some_features() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Raw features (I, P, D) with their mean and deviation (D,), float64."""
    generator = torch.Generator().manual_seed(1)
    scale_D = torch.logspace(-1, 1, D, dtype=torch.float64)
    raw_IPD = torch.randn(50, P, D, generator=generator, dtype=torch.float64) * scale_D + 3 * scale_D.flip(0)
    return raw_IPD, raw_IPD.mean((0, 1)), raw_IPD.std((0, 1), correction=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_the_folded_layer_is_the_unfolded_one_of_standardised_features(dtype, tolerance):
    plain, (raw_IPD, mean_D, std_D) = some_layer(dtype), some_features()
    folded, segment_H = copy.deepcopy(plain), torch.randn(H, dtype=dtype)
    folded.standardise(mean_D, std_D)
    standardised_IPD = (raw_IPD - mean_D) / std_D
    of_raw, of_standardised = (
        folded.images(raw_IPD.to(dtype), segment_H),
        plain.images(standardised_IPD.to(dtype), segment_H),
    )
    torch.testing.assert_close(of_raw, of_standardised, atol=tolerance, rtol=tolerance)
    assert (plain.images(raw_IPD.to(dtype), segment_H) - of_raw).abs().max() > 0.1
    assert folded.projection.weight.dtype == folded.position.weight.dtype == dtype


def test_a_masked_patch_is_a_raw_zero():
    """That is -mean / std of standardised features, not their zero."""
    plain, (raw_IPD, mean_D, std_D) = some_layer(), some_features()
    folded, segment_H = copy.deepcopy(plain), torch.randn(H, dtype=torch.float64)
    folded.standardise(mean_D, std_D)
    masked_IP = torch.ones(raw_IPD.shape[:2], dtype=torch.bool)
    found = masked_patch_embed_reference(raw_IPD, masked_IP, *folded._weights(segment_H))
    of_zero = plain.images((-mean_D / std_D).expand(1, P, D), segment_H).expand_as(found)
    torch.testing.assert_close(found, of_zero)


@pytest.mark.parametrize("std", [0.0, 1e-12])
def test_a_dimension_that_never_changes_is_not_blown_up(std):
    plain, (raw_IPD, mean_D, std_D) = some_layer(), some_features()
    folded, std_D[3] = copy.deepcopy(plain), std
    raw_IPD[..., 3] = mean_D[3]
    folded.standardise(mean_D, std_D)
    least = 0.01 * std_D.square().mean().sqrt()
    torch.testing.assert_close(folded.projection.weight[:, 3], plain.projection.weight[:, 3] / least)
    standardised_IPD = (raw_IPD - mean_D) / std_D.clamp_min(least)
    segment_H = torch.zeros(H, dtype=torch.float64)
    torch.testing.assert_close(folded.images(raw_IPD, segment_H), plain.images(standardised_IPD, segment_H))
    nothing = copy.deepcopy(plain)
    nothing.standardise(mean_D, torch.zeros(D, dtype=torch.float64))
    assert torch.equal(nothing.projection.weight, plain.projection.weight)


# Where it is done ----------------------------------------------------------------------------------------------------
def built(store: Path, *overrides: str) -> FashionBertForPreTraining:
    fields = [f"data.store={store}", "train.output=unused", *TINY_MODEL, *overrides]
    torch.manual_seed(0)
    return build_model(load_config(None, fields), FeatureStore.open(store), 300)


def of_layer(model: FashionBertForPreTraining) -> tuple[torch.Tensor, torch.Tensor]:
    layer = model.patch_embeddings
    return layer.projection.weight.detach().double(), layer.position.weight.detach().double()


@pytest.mark.parametrize("core", ["scratch", "bert"])
def test_a_fresh_patch_side_begins_standardised(store_path, tmp_path, core):
    """By the training rows' features themselves, as numpy has them."""
    fields = [] if core == "scratch" else [f"model.core={bert_directory(tmp_path / 'core', **TINY)}"]
    (plain_HD, plain_PH), (weight_HD, position_PH) = (
        of_layer(built(store_path, *fields, f"model.standardise_features={on}")) for on in ("false", "true")
    )
    store = FeatureStore.open(store_path)
    trained_RD = store.features(store.rows("train")).double().numpy().reshape(-1, 24)
    mean_D, std_D = torch.from_numpy(trained_RD.mean(0)), torch.from_numpy(trained_RD.std(0))
    torch.testing.assert_close(weight_HD, plain_HD / std_D, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(position_PH, plain_PH - plain_HD @ (mean_D / std_D), atol=1e-6, rtol=1e-4)


def test_a_run_of_ours_goes_on_as_it_was(store_path, tmp_path):
    first = built(store_path, "model.standardise_features=true")
    first.save_pretrained(tmp_path / "ours")
    again = built(store_path, f"model.core={tmp_path / 'ours'}", "model.standardise_features=true")
    assert all(torch.equal(a, b) for a, b in zip(of_layer(first), of_layer(again), strict=True))


def test_a_store_without_statistics_is_named(store_path):
    store = FeatureStore.open(store_path)
    assert store.manifest.statistics
    store.manifest.statistics = {}
    fields = [f"data.store={store_path}", "train.output=x", *TINY_MODEL, "model.standardise_features=true"]
    with pytest.raises(InputError, match=r"^model\.standardise_features true: .*no statistics .*prepare it again"):
        build_model(load_config(None, fields), store, 300)
