"""What the contrastive loss costs a step: the same pairs with it as a fourth task, and without.

A model of the size of all-MiniLM-L6-v2 (6 layers, H = 384) in bfloat16; forward, backward and AdamW. The three tasks'
losses are found equal first.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from benchmarks.measure import Row, compare
from benchmarks.services.bench_evaluate import MODEL, drawn_store
from fashionbert_fast.data.batch import Batch
from fashionbert_fast.data.config import ContrastiveConfig, DataConfig
from fashionbert_fast.data.pairs import PairDataset
from fashionbert_fast.data.titles import TokenizedTitles
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.model.config import FashionBertConfig
from fashionbert_fast.objectives.pretraining import FashionBertForPreTraining

PAIRS, MOST = 64, 0.6  # of a batch; what a step may take on top
CONTRASTIVE = ContrastiveConfig(weight=1.0)


def rows(device: torch.device, quick: bool) -> list[Row]:
    """A row for either `data.pairs`: a product stands alone once, whether it is in one pair or in two."""
    with tempfile.TemporaryDirectory(prefix="contrastive-") as folder:
        drawn = drawn_store(Path(folder), 2)
        return [_row(*drawn, pairs, device, quick) for pairs in ("both", "coin")]


def _row(store: FeatureStore, titles: TokenizedTitles, pairs: str, device: torch.device, quick: bool) -> Row:
    """Ours with the loss, beside ours without."""
    config = DataConfig(store="drawn", negatives="subcategory", pairs=pairs)
    with_it, without = (
        PairDataset(store, titles, store.rows(None), config, micro_batch_size=PAIRS, steps=1, contrastive=of)[0][0]
        for of in (CONTRASTIVE, None)
    )
    ours, theirs = _Step(with_it.to(device), device), _Step(without.to(device), device)
    torch.testing.assert_close(ours.losses()[:3], theirs.losses(), rtol=0.02, atol=0.02)
    alone = int(with_it.contrastive.live_C.sum())
    case = f"a step of {PAIRS} pairs, 6 layers H=384, bf16, and {alone} titles and {alone} photos alone"
    return compare(case, "without the contrastive loss", ours, theirs, target=1 / (1 + MOST), device=device,
                   pairs=3 if quick else 15, seconds=0.1 if quick else 1.0)  # fmt: skip


class _Step:
    """Call it to take a step."""

    def __init__(self, batch: Batch, device: torch.device) -> None:
        sizes = {} if batch.contrastive is None else {"contrastive_size": CONTRASTIVE.size, "contrastive_weight": 1.0}
        torch.manual_seed(0)
        self.model = FashionBertForPreTraining(FashionBertConfig(**MODEL, **sizes)).to(device, torch.bfloat16)
        self.batch, self.optimizer = batch, torch.optim.AdamW(self.model.parameters(), lr=1e-5)

    @torch.inference_mode()
    def losses(self) -> torch.Tensor:
        """Of the tasks, nothing dropped."""
        losses_T = self.model.eval()(self.batch).losses_T
        self.model.train()
        return losses_T

    def __call__(self) -> None:
        self.model(self.batch).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
