"""The whole model under torch.autocast, its parameters in float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fashionbert_fast.data.config import DataConfig
from fashionbert_fast.data.pairs import PairDataset, collate_pairs
from fashionbert_fast.model.config import FashionBertConfig, TaskWeighting
from fashionbert_fast.objectives.pretraining import FashionBertForPreTraining


def _model(**weighting) -> FashionBertForPreTraining:
    torch.manual_seed(0)
    config = FashionBertConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        patches=4,
        patch_feature_size=24,
        initializer_range=0.2,
        weighting=TaskWeighting(**weighting),
    )
    return FashionBertForPreTraining(config)


def _close(ours: torch.Tensor, exact: torch.Tensor) -> bool:
    """Alike to what bfloat16 resolves after two layers: measured 0.02."""
    return bool((ours - exact).norm() <= 0.1 * exact.norm())


@pytest.mark.parametrize("method", ["loss", "min_norm"])
def test_a_step_under_autocast(method, store_and_titles):
    """The losses and gradients of float32, up to bfloat16's rounding; every gradient in float32."""
    store, titles = store_and_titles
    dataset = PairDataset(store, titles, np.arange(len(store)), DataConfig(), micro_batch_size=8, steps=1)
    (batch,) = dataset[0]
    losses, gradients = [], []
    for enabled in (True, False):
        model = _model(method=method)
        torch.manual_seed(1)  # of the dropout
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = model.train()(batch)
        output.loss.backward()
        assert output.losses_T.dtype == torch.float32
        losses.append(output.losses_T)
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert _close(*losses) and not torch.equal(*losses)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient.dtype == torch.float32 and gradient.isfinite().all(), name
    if method == "loss":  # other weights, where a Gram matrix is rounded
        together = [torch.cat([gradient.flatten() for gradient in found.values()]) for found in gradients]
        assert _close(*together)


@torch.no_grad()
def test_inference_under_autocast(store_and_titles):
    model, pairs = _model().eval(), collate_pairs(*store_and_titles, np.array([0, 1, 2, 3]), np.array([0, 1, 1, 5]))
    ids_BL = torch.randint(300, (2, 7))
    exact = model.alignment_logits(pairs), model.encode(pairs), model.encode_text(ids_BL)
    with torch.autocast("cpu", torch.bfloat16):
        ours = model.alignment_logits(pairs), model.encode(pairs), model.encode_text(ids_BL)
    assert ours[0].dtype == torch.float32
    for mine, right in zip(ours, exact, strict=True):
        assert _close(mine, right) and not torch.equal(mine, right)
