"""`fashionbert bench evaluate`: the loop scores what ours scores, and the rows are the contract's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.services import bench_evaluate
from benchmarks.services.bench_evaluate import _check, rows

TINY = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "patches": 4, "patch_feature_size": 24}  # fmt: skip


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    for name, value in {"MODEL": TINY, "GRID": 2, "FEATURE": 24, "OF_EACH": 8, "DEFAULT_CANDIDATES": 6}.items():
        monkeypatch.setattr(bench_evaluate, name, value)


def test_rows_come_out_of_equal_scores():
    found = rows(torch.device("cpu"), quick=True)
    protocol, *compared = found
    assert protocol.case.startswith("protocol fashionbert, 10 x 6 x 2 (") and protocol.unit == "s"
    assert [(row.case[-4:], "fp32" in row.peer) for row in compared] == [
        ("fp32", True),
        ("bf16", False),
        ("bf16", True),
    ]
    assert all(row.case.startswith("24 pairs of 2 queries") and row.value > 0 < row.peer_value for row in compared)
    assert all(row.spread[0] <= row.ratio <= row.spread[1] and row.target == 3.0 for row in compared)


def test_another_model_is_not_timed(monkeypatch):
    loop = bench_evaluate._Loop.__call__
    monkeypatch.setattr(bench_evaluate._Loop, "__call__", lambda self, text, image: loop(self, image, text))
    with pytest.raises(AssertionError, match=r"not the same model|all alike"):
        rows(torch.device("cpu"), quick=True)


def test_scores_that_are_all_alike_prove_nothing():
    with pytest.raises(AssertionError, match="all alike"):
        _check(np.array([0.5, 0.5001]), np.array([0.5003, 0.4999]), 1e-3)
