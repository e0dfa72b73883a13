"""The peers of `fashionbert bench step` compute what ours computes: same losses, same gradients, same samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector

from benchmarks.steps.peers import PaddedFashionBert, pad
from benchmarks.steps.workload import fashion_gen_lengths, make_batches
from fashionbert_fast import FashionBertConfig, FashionBertForPreTraining


@pytest.fixture(scope="module")
def ours() -> FashionBertForPreTraining:
    torch.manual_seed(0)
    config = FashionBertConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, patches=4,
        patch_feature_size=24, hidden_dropout_prob=0, attention_probs_dropout_prob=0, patch_dropout_prob=0,
        initializer_range=0.2,
    )  # fmt: skip
    return FashionBertForPreTraining(config)


@pytest.mark.parametrize("dense_heads", [False, True])
@pytest.mark.parametrize("to", [None, 64])
def test_losses_and_gradients_agree(ours, dense_heads, to):
    (batch,) = make_batches(ours.config, fashion_gen_lengths(8), 8, dtype=torch.float32)
    peer = PaddedFashionBert.from_ours(ours, dense_heads)
    output = ours(batch)
    loss, losses_T = peer(pad(batch, to))
    torch.testing.assert_close(losses_T, output.losses_T, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss, output.loss, rtol=1e-5, atol=1e-6)
    for model, value in ((ours, output.loss), (peer, loss)):
        model.zero_grad()
        value.backward()
    pairs = {
        "text_embeddings.word.weight": "bert.embeddings.word_embeddings.weight",
        "text_embeddings.segment.weight": "bert.embeddings.token_type_embeddings.weight",
        "patch_embeddings.projection.weight": "projection.weight",
        "mpm_head.projection.weight": "mpm.weight",
        "encoder.layers.0.feed_forward.bias": "bert.encoder.layer.0.intermediate.dense.bias",
        "encoder.layers.1.attention_norm.weight": "bert.encoder.layer.1.attention.output.LayerNorm.weight",
        "tia_head.pooler.weight": "bert.pooler.dense.weight",
    }
    for mine, theirs in pairs.items():
        a, b = ours.get_parameter(mine).grad, peer.get_parameter(theirs).grad
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item(), msg=lambda m, n=mine: f"{n}: {m}")
    norms = [parameters_to_vector(p.grad for p in m.parameters() if p.grad is not None).norm() for m in (ours, peer)]
    torch.testing.assert_close(*norms, rtol=1e-4, atol=0)


def test_fashion_gen_lengths_are_the_stated_distribution():
    lengths = fashion_gen_lengths(20000)
    assert lengths.min() == 8 and lengths.max() <= 64
    assert abs(np.mean(lengths) - 25.2) < 0.5 and abs(np.std(lengths) - 9.7) < 0.5
