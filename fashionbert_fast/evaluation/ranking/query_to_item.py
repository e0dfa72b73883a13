"""Protocol "queries": how well a query finds its items among all of a split, by their vectors.

An item is a title with its photo. Right for a query are the items that have it, and twins of those (`data.queries`).
Figures are means over queries. Recall@k is the share of the right items among the first k, of as many as k has room
for: a perfect order has 1 at every k. Ties count against the model: right items stand behind wrong ones of the same
cosine.

Shapes: Q queries, N items, K rows or texts of a batch, H hidden, M figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from fashionbert_fast.catalogue.twins import leaks
from fashionbert_fast.data.batch import PackedPairs
from fashionbert_fast.data.counter_rng import Stream, random_bits
from fashionbert_fast.data.pairs import collate_texts
from fashionbert_fast.data.queries import Queries
from fashionbert_fast.data.tokenizer import load_tokenizer
from fashionbert_fast.errors import InputError
from fashionbert_fast.evaluation.ranking.intervals import mean_intervals
from fashionbert_fast.evaluation.run import load_scorer, split_rows
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.inference.scorer import PairScorer
from fashionbert_fast.processor import max_text_tokens

PROTOCOL = "queries"
RECALLS, NDCG = (1, 10, 100), 10
FIGURES = (*(f"R@{k}" for k in RECALLS), "MRR", f"NDCG@{NDCG}")
AT_ONCE = 1 << 24  # cosines


def figures(cosine_QN: np.ndarray, right_QN: np.ndarray) -> np.ndarray:
    """(Q, M) float64: `FIGURES` of each query, which has a right item each. ValueError where a cosine is NaN, which
    would stand last, and flatter."""
    if np.isnan(cosine_QN).any():
        raise ValueError(f"cosine_QN: {int(np.isnan(cosine_QN).sum())} of {cosine_QN.size} are NaN")
    found_QN = np.take_along_axis(right_QN, np.lexsort((right_QN, -cosine_QN)), axis=1)
    right_Q = right_QN.sum(1)
    recalls = [found_QN[:, :k].sum(1) / np.minimum(k, right_Q) for k in RECALLS]
    gains = 1 / np.log2(np.arange(2, 2 + min(NDCG, right_QN.shape[1])))
    ideal_Q = gains.cumsum()[np.minimum(right_Q, len(gains)) - 1]
    gained_Q = (found_QN[:, : len(gains)] * gains).cumsum(1)[:, -1]  # added up as the ideal is: 1 is exactly 1
    return np.stack([*recalls, 1 / (1 + found_QN.argmax(1)), gained_Q / ideal_Q], axis=1)


def chances(right_Q: np.ndarray, items: int) -> list[float]:
    """Recalls that an order drawn at random has on average."""
    return [float((min(k, items) * right_Q / items / np.minimum(k, right_Q)).mean()) for k in RECALLS]


def query_vectors(scorer: PairScorer, queries: Queries, query_Q: np.ndarray) -> np.ndarray:
    """(Q, H) float32 of the queries of those numbers, by all ranks."""
    manifest = scorer.store.manifest

    def collate(span: slice) -> PackedPairs:
        texts = collate_texts(queries.texts, query_Q[span], manifest.patches, manifest.feature_size)
        return texts.in_segment(queries.segment)

    like = np.empty((0, scorer.model.vector_size), dtype=np.float32)
    return scorer.run(len(query_Q), collate, scorer.model.vectors, query_Q.tobytes(), like, "embedding what was asked")


def evaluate_queries(
    checkpoint: Path, data: Path, *, split: str = "validation", queries: int | None = None, seed: int = 0,
    batch_size: int | None = None, device: str | None = None, precision: str = "fp32", keep: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What `fashionbert evaluate --protocol queries --json` writes: figures over all queries of the split's products,
    or as many as ``queries`` drawn by the seed, and apart over those that are asked of no training product. Under a
    launcher every process calls this, and has all of it. keep: as of `run_evaluation`.

    Raises InputError where the split has no products or no queries, or the checkpoint does not fit the store.
    """
    if queries is not None and queries < 1:
        raise InputError(f"queries: {queries} is not a number of queries; give 1 or more")
    store = FeatureStore.open(data)
    rows_N = split_rows(store, split, data)
    scorer, model_dir = load_scorer(checkpoint, store, data, batch_size, device, precision, keep)
    if not any(store.queries[row] for row in rows_N.tolist()):
        raise InputError(f"{data}: no product of split {split!r} has a query; prepare it with --queries FILE or a "
                         "query column, or choose another --split")  # fmt: skip
    asked = Queries(store, load_tokenizer(model_dir), max_text_tokens(model_dir), scorer.model.query_segment)
    query_Q = asked.of(rows_N)
    query_Q = np.sort(query_Q[np.argsort(random_bits(seed, Stream.QUERY, 0, query_Q), kind="stable")][:queries])
    found_QM, right_Q = _found(
        scorer.embed(rows_N, "both"), query_vectors(scorer, asked, query_Q), asked, query_Q, rows_N
    )
    unseen_Q = ~np.isin(query_Q, asked.of(np.setdiff1d(store.rows("train"), rows_N)))
    result = {
        "protocol": PROTOCOL, "queries": len(query_Q), "items": len(rows_N), "right_items": float(right_Q.mean()),
        **_summary(found_QM, seed), "chance": dict(zip(FIGURES, chances(right_Q, len(rows_N)), strict=False)),
        "unseen": {"queries": int(unseen_Q.sum())} | (_summary(found_QM[unseen_Q], seed) if unseen_Q.any() else {}),
        "seed": seed, "precision": precision, "split": split, "checkpoint": str(model_dir), "data": str(data),
        "throughput": scorer.work.throughput("sequences"),
    }  # fmt: skip
    return result | ({"leaks": leaks(store)[split]} if split not in ("train", "all") else {})


def _found(
    item_NH: np.ndarray, query_QH: np.ndarray, asked: Queries, query_Q: np.ndarray, rows_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`figures` (Q, M) and how many items are right for each query (Q,), some queries at a time."""

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        step = max(1, AT_ONCE // len(rows_N))
        for start in range(0, len(query_Q), step):
            right_QN = asked.right(query_Q[start : start + step], rows_N)
            yield figures(query_QH[start : start + step] @ item_NH.T, right_QN), right_QN.sum(1)

    if not (np.isfinite(item_NH).all() and np.isfinite(query_QH).all()):
        raise InputError("checkpoint: its vectors are not finite (its training diverged, or its weights are damaged); "
                         "evaluate an earlier checkpoint")  # fmt: skip
    found, right = zip(*blocks(), strict=True)
    return np.concatenate(found), np.concatenate(right)


def _summary(found_QM: np.ndarray, seed: int) -> dict[str, dict[str, Any]]:
    ends_M2 = mean_intervals(found_QM, seed=seed)
    return {"query_to_item": dict(zip(FIGURES, found_QM.mean(0).tolist(), strict=True)),
            "intervals": dict(zip(FIGURES, ends_M2.tolist(), strict=True))}  # fmt: skip


def table(result: dict[str, Any]) -> Table:
    """The figures for people, percentages with 95% intervals below."""
    shown = Table(title=f"protocol queries: {result['queries']} queries, {result['items']} items")
    shown.add_column("")
    for name in FIGURES:
        shown.add_column(name, justify="right")
    for name, part in (
        ("query -> item", result),
        (f"asked in no training ({result['unseen']['queries']})", result["unseen"]),
    ):
        if "query_to_item" in part:
            shown.add_row(name, *(f"{100 * value:.2f}" for value in part["query_to_item"].values()))
            ends = part["intervals"].values()
            shown.add_row("", *(f"{100 * low:.1f} to {100 * high:.1f}" for low, high in ends), style="dim")
    shown.add_row("chance", *(f"{100 * value:.2f}" for value in result["chance"].values()), style="dim")
    shown.caption = f"{result['right_items']:.1f} items are right for a query on average; 95% intervals by bootstrap"
    return shown
