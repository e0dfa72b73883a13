"""Time of a query over 5,000 products, embedding included, in this process once it has started: words, words with
reranking, a photo; and the recall of each kind of index against all vectors compared.

The model is of the size of all-MiniLM-L6-v2 (6 layers, H = 384) with weights drawn anew, the products are drawn around
200 middles, and so are the queries that recall is of: time depends on neither. With ``index`` an index of your own is
asked, by its own model, for words that are its titles.
"""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.measure import Row
from fashionbert_fast.data.tokenizer import load_tokenizer, train_wordpiece
from fashionbert_fast.features.manifest import Manifest
from fashionbert_fast.features.patch_encoder import load_encoder
from fashionbert_fast.model.config import FashionBertConfig
from fashionbert_fast.objectives.pretraining import FashionBertForPreTraining
from fashionbert_fast.processor import FashionBertProcessor
from fashionbert_fast.retrieval import KINDS, TOP
from fashionbert_fast.retrieval.embed import Embedder
from fashionbert_fast.retrieval.embedding_store import Products, write_vectors
from fashionbert_fast.retrieval.index import Index, build_index
from fashionbert_fast.retrieval.search import Searcher

PRODUCTS, QUERIES, LAYERS, H = 5000, 1000, 6, 384
MOST_US, RECALL = 50_000.0, 0.99  # a query's time, and recall@10, that are aimed at
ENCODER = "random:0:32"  # a small ResNet: a photo's time is its encoder's, which has its own measurements
COLOURS, KINDS_OF = ("red", "blue", "striped", "black"), ("shirt", "long dress", "leather boots", "summer hat")


def rows(device: torch.device, quick: bool, index: Path | None = None) -> list[Row]:
    """A row a kind of query, and a row a kind of index."""
    times = 10 if quick else 100
    with tempfile.TemporaryDirectory(prefix="search-") as folder:
        if index is not None:
            searcher = Searcher.open(index, device=str(device))
            indices = {searcher.index.manifest["kind"]: searcher.index}
        else:
            indices = _drawn_indices(Path(folder))
            searcher = Searcher(indices["flat"], _drawn_embedder(device, Path(folder)))
        searcher.warm_up()
        titles, photo = searcher.index.products.titles, _photo()
        found = [
            _timed(f"{len(titles):,} products, words", times,
                   lambda i: searcher.search(titles[i * 37 % len(titles)])),
            _timed(f"{len(titles):,} products, a photo", times, lambda _: searcher.search(image=photo)),
        ]  # fmt: skip
        if index is not None:
            found.append(_timed(f"{len(titles):,} products, words, reranked", times,
                                lambda i: searcher.search(titles[i * 37 % len(titles)], rerank=True)))  # fmt: skip
        queries_QH = _drawn(QUERIES, seed=1) if index is None else searcher.embedder.text(titles[:QUERIES])
        return found + [_recall(kind, indices[kind], queries_QH) for kind in indices]


def _timed(case: str, times: int, query: Callable[[int], object]) -> Row:
    """The median of single queries, one after another; the ratio says how many times faster than the aim."""
    for i in range(3):
        query(i)
    seconds = []
    for i in range(times):
        start = time.perf_counter()
        query(i)
        seconds.append(time.perf_counter() - start)
    micros = [1e6 * value for value in seconds]
    low, *_, high = statistics.quantiles(micros, n=5)
    median = statistics.median(micros)
    return Row(f"a query of {case}, embedding included", "50 ms", median, MOST_US, "us", MOST_US / median, 1.0,
               median <= MOST_US, [MOST_US / high, MOST_US / low])  # fmt: skip


def _recall(kind: str, index: Index, queries_QH: np.ndarray) -> Row:
    value = index.recall(queries_QH)
    case = f"recall@{TOP} of {kind}, {len(index):,} products, {len(queries_QH):,} queries"
    return Row(case, "all vectors compared", value, 1.0, "", value, RECALL, value >= RECALL, [value, value])


def _photo() -> io.BytesIO:
    pixels = np.random.default_rng(0).integers(256, size=(480, 360, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file


def _drawn_embedder(device: torch.device, folder: Path) -> Embedder:
    encoder = load_encoder(ENCODER, device=device)
    titles = [f"{colour} {kind}" for colour in COLOURS for kind in KINDS_OF]
    train_wordpiece(titles, 400, folder / "tokenizer")
    torch.manual_seed(0)
    config = FashionBertConfig(
        vocab_size=400, hidden_size=H, num_hidden_layers=LAYERS, num_attention_heads=12, intermediate_size=4 * H,
        patches=encoder.grid**2, patch_feature_size=encoder.feature_size, initializer_range=0.1,
    )  # fmt: skip
    model = FashionBertForPreTraining(config).to(device).eval()
    manifest = Manifest.from_dict(encoder.manifest().to_dict())
    return Embedder(model, FashionBertProcessor(load_tokenizer(folder / "tokenizer"), manifest, device=device))


def _drawn(count: int, seed: int) -> np.ndarray:
    """Vectors around 200 middles, the same whatever the seed."""
    middles, generator = np.random.default_rng(0).standard_normal((200, H)), np.random.default_rng([3, seed])
    drawn = middles[generator.integers(200, size=count)] + 0.5 * generator.standard_normal((count, H))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def _drawn_indices(folder: Path) -> dict[str, Index]:
    names = [f"{COLOURS[i % 4]} {KINDS_OF[i // 4 % 4]} {i}" for i in range(PRODUCTS)]
    manifest = {
        "of": "both", "split": "all", "precision": "fp32", "features": {}, "model": {"path": "", "sha256": ""},
        "store": {"path": "", "content_sha256": ""},
    }  # fmt: skip
    products = Products(names, names, names, names, names, np.arange(PRODUCTS))
    write_vectors(folder / "vectors", _drawn(PRODUCTS, 0), _drawn(QUERIES, 2), products, manifest)
    for kind in KINDS:
        build_index(folder / "vectors", folder / kind, kind=kind)
    return {kind: Index.open(folder / kind) for kind in KINDS}
