"""Every technique switched off leaves the losses and gradients what they were: the ladder measures time alone."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from benchmarks.steps.ablation import TECHNIQUES
from benchmarks.steps.step_process import switched_batch, switched_off
from benchmarks.steps.workload import fashion_gen_lengths, make_batches
from fashionbert_fast import FashionBertConfig, FashionBertForPreTraining


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_a_technique_changes_no_loss_and_no_gradient(technique):
    torch.manual_seed(0)
    config = FashionBertConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, patches=4,
        patch_feature_size=24, hidden_dropout_prob=0, attention_probs_dropout_prob=0, patch_dropout_prob=0,
        initializer_range=0.2,
    )  # fmt: skip
    model = FashionBertForPreTraining(config)
    (batch,) = make_batches(config, fashion_gen_lengths(8), 8, dtype=torch.float32)
    results = []
    for without in (None, technique):
        model.zero_grad()
        with switched_off(without):
            output = model(switched_batch(batch, without), batch.targets.counts_T)
            output.loss.backward()
        results.append((output.losses_T, parameters_to_vector(p.grad for p in model.parameters())))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-6)
    gradient = results[0][1]
    torch.testing.assert_close(results[1][1], gradient, rtol=1e-3, atol=1e-5 * gradient.abs().max().item())
