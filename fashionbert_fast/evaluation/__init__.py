"""Evaluation: how well titles find their photos and photos their titles, and what [CLS] knows of the categories.

protocols.evaluate(store, rows, score, protocol="fashionbert") -> the dict written by `fashionbert evaluate --json`
"""

from fashionbert_fast.evaluation.ranking.protocols import evaluate

__all__ = ["evaluate"]
