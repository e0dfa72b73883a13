"""The joint sequence: text first, patches after it, padding without effect, [CLS] alone equal to [CLS] of all."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from fashionbert_fast.data.pairs import collate_pairs
from fashionbert_fast.model.config import FashionBertConfig
from fashionbert_fast.objectives.pretraining import FashionBertForPreTraining


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = FashionBertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, patches=4,
        patch_feature_size=24, initializer_range=0.2,
    )  # fmt: skip
    return FashionBertForPreTraining(config).eval()


@pytest.fixture(scope="module")
def batch(store_and_titles):
    return collate_pairs(*store_and_titles, np.array([0, 1, 2, 3]), np.array([0, 1, 1, 5]))


@torch.no_grad()
def test_cls_alone_equals_cls_of_the_whole_sequence(model, batch):
    torch.testing.assert_close(
        model.encode_cls(batch), model.encode(batch)[batch.cu_seqlens_S1[:-1]], atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
def test_what_the_encoder_is_given(model, batch):
    """Row by row: a word with its place and the text's segment (0), a patch with its place and the image's (1)."""
    model = copy.deepcopy(model).double()
    model.encoder.forward = model.encoder.forward_cls = lambda hidden_TH, packing: hidden_TH
    batch = dataclasses.replace(batch, features_IPD=batch.features_IPD.double())
    text, patches = model.text_embeddings, model.patch_embeddings
    for norm in (text.norm, patches.norm):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    word, place, segment = text.word.weight, text.position.weight, text.segment.weight
    ids, expected = iter(batch.input_id_N.tolist()), []
    for pair, length in enumerate((batch.cu_seqlens_S1.diff() - 4).tolist()):
        titles = torch.stack([word[next(ids)] + place[i] + segment[0] for i in range(length)])
        feature_PD = batch.features_IPD[batch.image_index_B[pair]]
        photo = feature_PD @ patches.projection.weight.T + patches.position.weight + segment[1]
        for rows, norm in ((titles, text.norm), (photo, patches.norm)):
            expected.append(torch.nn.functional.layer_norm(rows, (16,), norm.weight, norm.bias, 1e-12))
    torch.testing.assert_close(model.encode(batch), torch.cat(expected))
    torch.testing.assert_close(model.encode_cls(batch), torch.cat(expected))


@torch.no_grad()
def test_the_fill_of_a_budget_has_no_effect(model, batch):
    filled = copy.copy(batch)
    filled.input_id_N = torch.nn.functional.pad(batch.input_id_N, (0, 7), value=9)
    filled.position_N = torch.nn.functional.pad(batch.position_N, (0, 7))
    filled.text_row_N = torch.cat([batch.text_row_N, torch.arange(batch.rows, batch.rows + 7)])
    assert filled.rows == batch.rows + 7
    torch.testing.assert_close(model.alignment_logits(filled), model.alignment_logits(batch), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.encode(filled)[:-7], model.encode(batch), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_text_and_image_both_matter(model, batch):
    hidden = model.encode(batch)
    assert hidden.shape == (batch.tokens, 16) == (batch.rows, 16)
    other = copy.copy(batch)
    other.image_index_B = batch.image_index_B.flip(0)
    assert (model.alignment_logits(other) - model.alignment_logits(batch)).abs().max() > 1e-4
    masked = copy.copy(batch)
    masked.patch_mask_BP = torch.ones_like(batch.patch_mask_BP)
    everything_masked = model.encode(masked)
    masked.image_index_B = batch.image_index_B.flip(0)
    torch.testing.assert_close(model.encode(masked), everything_masked)  # a masked image cannot be told from another


def test_initial_losses_are_those_of_guessing(model, batch):
    """TIA starts at ln 2: a fresh model knows nothing and is not broken."""
    torch.manual_seed(0)
    fresh = FashionBertForPreTraining(dataclasses.replace(model.config, initializer_range=0.02))
    logits = fresh.eval().alignment_logits(batch)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([1, 1, 0, 0]))
    assert loss.item() == pytest.approx(np.log(2), abs=0.2)
