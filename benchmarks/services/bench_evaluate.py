"""The protocol "fashionbert" at the size of all-MiniLM-L6-v2 (6 layers, H = 384): how long 1,000 queries take, and how
many times faster pairs are scored than by a loop as one writes it with Hugging Face's `BertModel`.

The loop takes a query's candidates at a time, 101 pairs in the order of the lists, titles padded to 64 tokens, patches
given as embeddings, SDPA, no gradients; the same weights. Ours is what `fashionbert evaluate` does with the same pairs.
Scores are found equal before anything is timed. Weights, features and words are drawn, lengths are those of
Fashion-Gen's titles: time depends on nothing else.

Shapes: K pairs, B of a batch, L padded title tokens, P patches.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.measure import Row
from benchmarks.steps.peers import PaddedBatch, PaddedFashionBert
from benchmarks.steps.workload import LONGEST_TITLE, drawn_manifest, fashion_gen_lengths
from fashionbert_fast.catalogue.product import Product
from fashionbert_fast.data.titles import TokenizedTitles
from fashionbert_fast.data.tokenizer import load_tokenizer, train_wordpiece
from fashionbert_fast.evaluation.ranking.protocols import DEFAULT_CANDIDATES, candidate_lists, score_lists
from fashionbert_fast.features.store import FeatureStore, StoreWriter
from fashionbert_fast.inference.scorer import PairScorer
from fashionbert_fast.model.config import FashionBertConfig
from fashionbert_fast.objectives.pretraining import FashionBertForPreTraining

QUERIES, MOST_SECONDS, FASTER = 1000, 600.0, 3.0  # aims: of 1,000 queries in both directions; of the loop
SUBCATEGORIES, OF_EACH = 20, 150
GRID, FEATURE = 8, 1280  # EfficientNet-Lite0's
MODEL = {"vocab_size": 30522, "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
         "intermediate_size": 1536, "patches": GRID**2, "patch_feature_size": FEATURE}  # fmt: skip
COLOURS = ("red", "blue", "green", "black", "white", "grey", "pink", "brown")
GARMENTS = ("shirt", "dress", "boots", "hat", "coat", "skirt", "belt", "scarf")
TOLERANCES = {"fp32": 1e-3, "bf16": 0.05}  # of a probability


def rows(device: torch.device, quick: bool) -> list[Row]:
    """The whole protocol, then the loop in float32 and in bfloat16. quick: the same of fewer queries."""
    queries, looped, repeats = (10, 2, 2) if quick else (QUERIES, 10, 5)
    with tempfile.TemporaryDirectory(prefix="evaluate-") as folder:
        store, titles = drawn_store(Path(folder), 2 if quick else SUBCATEGORIES)
        torch.manual_seed(0)
        model = FashionBertForPreTraining(FashionBertConfig(**MODEL, initializer_range=0.05)).eval().to(device)
        scorers = {precision: PairScorer(model, store, titles, precision=precision) for precision in TOLERANCES}
        found = [_protocol(scorers["bf16"], store, queries)]
        pairs = _pairs(store, looped)
        loops = {precision: _Loop(model, store, titles, precision, device) for precision in TOLERANCES}
        for ours, theirs in (("fp32", "fp32"), ("bf16", "bf16"), ("bf16", "fp32")):
            _check(scorers[ours].score(*pairs), loops[theirs](*pairs), TOLERANCES[ours])
            case = f"{len(pairs[0]):,} pairs of {looped} queries, {ours}"
            peer = f"Hugging Face loop padded to {LONGEST_TITLE}, {theirs}" + " autocast" * (theirs == "bf16")
            found.append(_compared(case, peer, scorers[ours].score, loops[theirs], pairs, repeats))
        return found


def drawn_store(folder: Path, subcategories: int) -> tuple[FeatureStore, TokenizedTitles]:
    """A store of drawn features, `OF_EACH` products a sub-category, all of the split "validation", and its titles."""
    count = subcategories * OF_EACH
    generator, words = np.random.default_rng(0), (*COLOURS, *GARMENTS)
    products = []
    for i, length in enumerate(fashion_gen_lengths(count)):
        title = " ".join(generator.choice(words, length - 2))
        products.append(Product(f"{i:05d}", title, "all", f"kind {i // OF_EACH}", Path(f"{i}.jpg"), "validation"))
    drawn = torch.Generator().manual_seed(0)
    with StoreWriter(folder / "store", patches=GRID**2, feature_size=FEATURE, expected=count) as writer:
        for start in range(0, count, 100):
            some = products[start : start + 100]
            writer.append(some, torch.randn(len(some), GRID**2, FEATURE, generator=drawn).relu())
        writer.commit(drawn_manifest(GRID, 64, FEATURE))
    store = FeatureStore.open(folder / "store")
    train_wordpiece(list(words) * 10, 300, folder / "tokenizer")
    return store, TokenizedTitles(store.titles, load_tokenizer(folder / "tokenizer"), LONGEST_TITLE)


def _lists(store: FeatureStore, queries: int):
    return candidate_lists(
        store, store.rows(None), protocol="fashionbert", queries=queries, candidates=DEFAULT_CANDIDATES, seed=0
    )  # fmt: skip


def _protocol(scorer: PairScorer, store: FeatureStore, queries: int) -> Row:
    """The whole of it, once: it is too long for more."""
    lists, start = _lists(store, queries), time.perf_counter()
    score_lists(lists, store.rows(None), scorer.score)
    seconds, aim = time.perf_counter() - start, MOST_SECONDS * queries / QUERIES
    done = scorer.work.sequences
    case = f"protocol fashionbert, {queries:,} x {DEFAULT_CANDIDATES} x 2 ({done:,} distinct pairs), bf16"
    ratio = aim / seconds
    return Row(case, f"{aim / 60:g} minutes", seconds, aim, "s", ratio, 1.0, ratio >= 1, [ratio, ratio])


def _pairs(store: FeatureStore, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of titles and of images, a list after another: each query's title with its candidates' images, then its
    image with their titles."""
    lists = _lists(store, queries)
    query_QC = np.broadcast_to(lists.queries_Q[:, None], lists.candidates_QC.shape)
    both = np.stack([query_QC, lists.candidates_QC]), np.stack([lists.candidates_QC, query_QC])
    text, image = (side.transpose(1, 0, 2).ravel() for side in both)
    return text, image


class _Loop:
    """What one writes: a query's candidates at a time."""

    def __init__(
        self, model: FashionBertForPreTraining, store: FeatureStore, titles: TokenizedTitles, precision: str,
        device: torch.device,
    ) -> None:  # fmt: skip
        self.peer = PaddedFashionBert.from_ours(model).eval().to(device)
        self.store, self.titles, self.precision, self.device = store, titles, precision, device

    @torch.inference_mode()
    def __call__(self, text_K: np.ndarray, image_K: np.ndarray) -> np.ndarray:
        spans = [slice(start, start + DEFAULT_CANDIDATES) for start in range(0, len(text_K), DEFAULT_CANDIDATES)]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return np.concatenate([self._batch(text_K[span], image_K[span]) for span in spans])

    def _batch(self, text_B: np.ndarray, image_B: np.ndarray) -> np.ndarray:
        ids_BL = torch.zeros(len(text_B), LONGEST_TITLE, dtype=torch.int64)
        mask_BL = torch.zeros(ids_BL.shape, dtype=torch.bool)
        for ids_L, mask_L, row in zip(ids_BL, mask_BL, text_B.tolist(), strict=True):
            title = torch.from_numpy(self.titles.title(row)[0]).long()
            ids_L[: len(title)], mask_L[: len(title)] = title, True
        patch_mask_BP, nothing = torch.zeros(len(text_B), GRID**2, dtype=torch.bool), torch.empty(0, dtype=torch.int64)
        batch = PaddedBatch(
            ids_BL, F.pad(mask_BL, (0, GRID**2), value=True), self.store.features(image_B), patch_mask_BP, nothing,
            nothing, nothing, nothing, nothing,
        ).to(self.device)  # fmt: skip
        logits_B2 = self.peer.cls.seq_relationship(self.peer.bert.pooler(self.peer.hidden(batch)))
        return logits_B2.float().softmax(1)[:, 1].cpu().numpy()


def _check(ours_K: np.ndarray, theirs_K: np.ndarray, tolerance: float) -> None:
    """AssertionError unless the scores are equal to the precision's rounding, and tell pairs apart by far more."""
    largest = np.abs(ours_K - theirs_K).max()
    assert largest <= tolerance, f"scores differ by {largest:.2e}, more than {tolerance:g}: not the same model"
    assert ours_K.std() > 2 * np.abs(ours_K - theirs_K).mean(), "scores that are all alike prove nothing"


def _compared(
    case: str, peer: str, ours: Callable, theirs: Callable, pairs: tuple[np.ndarray, np.ndarray], repeats: int
) -> Row:
    """Pairs a second of both, passes in turn; the ratio is the median of the passes' ratios."""
    seconds = [(_seconds(ours, pairs), _seconds(theirs, pairs)) for _ in range(repeats)]
    ratios = [b / a for a, b in seconds]
    low, *_, high = statistics.quantiles(ratios, n=5)
    rates = [len(pairs[0]) / statistics.median(column) for column in zip(*seconds, strict=True)]
    ratio = statistics.median(ratios)
    return Row(case, peer, *rates, "pairs/s", ratio, FASTER, ratio >= FASTER, [low, high])


def _seconds(score: Callable, pairs: tuple[np.ndarray, np.ndarray]) -> float:
    start = time.perf_counter()
    score(*pairs)
    return time.perf_counter() - start
