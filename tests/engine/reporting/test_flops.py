"""FLOPs of a step, term by term, in numbers worked out by hand from what a forward and a backward multiply."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fashionbert_fast.data.batch import StepCounts
from fashionbert_fast.data.config import DataConfig
from fashionbert_fast.data.pairs import PairDataset
from fashionbert_fast.engine.reporting.flops import useful_flops
from fashionbert_fast.model.config import FashionBertConfig

# H = 8, feed-forward 16, 2 layers, features of 5 numbers, 11 words.
CONFIG = FashionBertConfig(
    vocab_size=11, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, patches=4,
    patch_feature_size=5,
)  # fmt: skip
# Each: what a step holds (masked tokens, pairs, masked patches, tokens, sum of squared lengths, patches) and its FLOPs.
# A product of m x k by k x n is 2 m k n forward and twice that backward; attention has two products, q k' and p v.
TERMS = {
    "a token through the encoder": ((0, 0, 0, 1, 0, 0), 2 * 3 * 2 * (8 * 24 + 8 * 8 + 8 * 16 + 16 * 8)),
    "attention of a pair of 3 tokens": ((0, 0, 0, 0, 9, 0), 2 * 3 * 2 * 2 * (3 * 3 * 8)),
    "a patch projected, without a gradient of the feature": ((0, 0, 0, 0, 0, 1), 2 * 2 * 5 * 8),
    "a masked patch, which is not projected, predicted": ((0, 0, 1, 0, 0, 1), 3 * 2 * 8 * 5),
    "a masked token, transformed and decoded": ((1, 0, 0, 0, 0, 0), 3 * 2 * (8 * 8 + 8 * 11)),
}


@pytest.mark.parametrize("term", TERMS)
def test_each_term(term):
    counts, expected = TERMS[term]
    assert useful_flops(CONFIG, StepCounts(*counts)) == expected


def test_a_whole_step_is_the_sum_of_its_terms():
    counts = StepCounts(3.0, 2.0, 1.0, 20.0, 208.0, 8.0)  # two pairs, of 8 and 12 tokens
    assert useful_flops(CONFIG, counts) == 122_880 + 39_936 + 7 * 160 + 240 + 3 * 912


def test_a_pair_of_bert_base():
    """25 title tokens and 64 patches, 15% of the words and 10% of the patches masked: 47 GFLOP forward and backward."""
    parts = {
        "encoder": ((0, 0, 0, 89, 0, 0), 45.355106304e9), "attention": ((0, 0, 0, 0, 89 * 89, 0), 0.875999232e9),
        "patches": ((0, 0, 0, 0, 0, 57.6), 0.3623878656e9), "words": ((3.75, 0, 0, 0, 0, 0), 0.5406912e9),
        "masked patches": ((0, 0, 6.4, 0, 0, 6.4), 0.0603979776e9),
    }  # fmt: skip
    base = FashionBertConfig()
    for part, (counts, expected) in parts.items():
        assert useful_flops(base, StepCounts(*counts)) == pytest.approx(expected, rel=1e-6), part
    whole = StepCounts(3.75, 1.0, 6.4, 89.0, 89.0**2, 64.0)
    assert useful_flops(base, whole) == pytest.approx(47.19458278e9, rel=1e-6)


def test_what_a_step_counts(store_and_titles):
    store, titles = store_and_titles
    dataset = PairDataset(
        store, titles, np.arange(len(store)), DataConfig(), micro_batch_size=4, micro_batches=3, steps=1
    )
    batches = dataset[0]
    lengths = torch.cat([batch.inputs.cu_seqlens_S1.diff() for batch in batches]).tolist()
    assert StepCounts.of(batches).tolist() == [
        sum(int((batch.targets.mlm_label_M != -100).sum()) for batch in batches), 12,
        sum(int(batch.inputs.patch_mask_BP.sum()) for batch in batches), sum(lengths), sum(n * n for n in lengths),
        12 * 4, 0, 0,
    ]  # fmt: skip
