"""Vectors: the mean over a sequence's rows and nothing else, of texts alone, photos alone, and both."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fashionbert_fast.data.pairs import collate_images, collate_pairs, collate_texts
from fashionbert_fast.model.config import FashionBertConfig
from fashionbert_fast.model.fashionbert import FashionBert, segment_sums

ROWS, IMAGES = np.array([3, 0, 1]), np.array([0, 1, 1])


@pytest.fixture(scope="module", params=[2, 3])
def model(request):
    torch.manual_seed(0)
    config = FashionBertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, patches=4,
        patch_feature_size=24, initializer_range=0.2, type_vocab_size=request.param,
    )  # fmt: skip
    return FashionBert(config).eval()


@torch.no_grad()
def test_vectors_of_texts_are_berts_mean(model, store_and_titles):
    _, titles = store_and_titles
    found_SH = model.vectors(collate_texts(titles, ROWS, 4, 24))
    for row, vector_H in zip(ROWS, found_SH, strict=True):
        ids_1L = torch.from_numpy(titles.title(row)[0].astype(np.int64))[None]
        torch.testing.assert_close(vector_H, F.normalize(model.encode_text(ids_1L)[0].mean(0), dim=0))


@torch.no_grad()
def test_vectors_of_photos_are_the_mean_of_their_patches(model, store_and_titles):
    store, _ = store_and_titles
    found_SH = model.vectors(collate_images(store, IMAGES))
    alone = [model.encode(collate_images(store, IMAGES[b : b + 1])) for b in range(3)]
    assert [len(hidden) for hidden in alone] == [4, 4, 4]
    torch.testing.assert_close(found_SH, torch.stack([F.normalize(hidden.mean(0), dim=0) for hidden in alone]))
    assert not torch.allclose(found_SH[0], found_SH[1])


@torch.no_grad()
def test_vectors_of_products_are_of_both_parts(model, store_and_titles):
    pairs = collate_pairs(*store_and_titles, ROWS, IMAGES)
    hidden = model.encode(pairs).split(pairs.cu_seqlens_S1.diff().tolist())
    torch.testing.assert_close(model.vectors(pairs), torch.stack([F.normalize(h.mean(0), dim=0) for h in hidden]))


@torch.no_grad()
def test_a_querys_segment_is_its_own_where_the_model_has_three(model, store_and_titles):
    texts = collate_texts(store_and_titles[1], ROWS, 4, 24)
    as_queries = dataclasses.replace(texts, segment_N=torch.full_like(texts.input_id_N, model.query_segment))
    has_its_own = model.config.type_vocab_size == 3
    assert torch.allclose(model.vectors(texts), model.vectors(as_queries)) != has_its_own


def test_the_fill_is_in_no_vector_and_gradients_flow():
    hidden_TH = torch.randn(9, 5, dtype=torch.float64).requires_grad_()  # a sequence of 2 rows, one of 4, 3 of fill
    vectors_SH = F.normalize(segment_sums(hidden_TH, torch.tensor([0, 2, 6], dtype=torch.int32)), dim=1)
    expected = [F.normalize(part.mean(0), dim=0) for part in (hidden_TH[:2], hidden_TH[2:6])]
    torch.testing.assert_close(vectors_SH.double(), torch.stack(expected), atol=1e-6, rtol=1e-6)
    vectors_SH.double().square().mul(torch.arange(5)).sum().backward()
    assert hidden_TH.grad[:6].abs().sum() > 0 and not hidden_TH.grad[6:].any()
