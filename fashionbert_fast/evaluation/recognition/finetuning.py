"""Recognition by fine-tuning: what the whole model can be taught of the categories, beside what a probe reads off it.

A short loop of its own, in one process and in float32: AdamW, linear warm-up and decay. The epoch that recognised best
a tenth of the training products, which is not trained on, is kept; the measured products are only looked at with it.

Shapes: n products, B of a batch, C classes of a level.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fashionbert_fast.config import TrainConfig
from fashionbert_fast.data.pairs import collate_pairs
from fashionbert_fast.data.titles import TokenizedTitles
from fashionbert_fast.engine.optimizer import build_optimizer, build_schedule
from fashionbert_fast.errors import InputError
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.model.fashionbert import FashionBert
from fashionbert_fast.objectives.recognition import UNKNOWN, FashionBertForRecognition, recognition_loss
from fashionbert_fast.progress import progress_bar

CHOSEN_BY = 0.1  # share of the training products that an epoch is chosen by
MEASURING = 128  # products of a forward pass without gradients


@dataclass(frozen=True)
class Finetuning:
    """How to fine-tune. products: at most so many of the training split, drawn by the seed; None: all."""

    epochs: int = 3
    lr: float = 1e-4
    batch_size: int = 32
    products: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("products", 10)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"--finetune-{name.replace('_', '-')}: {value} is too few; give {least} or more")
        if not self.lr > 0:
            raise InputError(f"--finetune-lr: {self.lr} must be positive")


class _Products:
    """Batches of products, each title with its own photo, and their labels."""

    def __init__(
        self, store: FeatureStore, titles: TokenizedTitles, labels: Mapping[str, np.ndarray], device: torch.device
    ) -> None:
        self.store, self.titles, self.labels, self.device = store, titles, labels, device

    def batch(self, rows: np.ndarray):
        return collate_pairs(self.store, self.titles, rows, rows).to(self.device)

    def labels_of(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        return {level: torch.from_numpy(label_N[rows]).to(self.device) for level, label_N in self.labels.items()}


def finetune(
    model: FashionBert, store: FeatureStore, titles: TokenizedTitles, train: np.ndarray,
    names: Mapping[str, list[str]], measured: np.ndarray, how: Finetuning,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:  # fmt: skip
    """Fine-tune on the store rows ``train`` and name the classes of the rows ``measured``.

    model: on the device to train on; it keeps its weights. names: level -> the class of every row of the store, ""
    where it is not known. Returns level -> class names (n,) of ``measured``, and what was done.
    """
    device = next(model.parameters()).device
    generator = np.random.default_rng(how.seed)
    train = generator.permutation(train)[: how.products]
    held_out = max(1, round(CHOSEN_BY * len(train)))
    chosen_by, train = train[:held_out], train[held_out:]
    if len(train) == 0:
        raise InputError(f"{store.path}: {held_out} training product(s) are too few to fine-tune on")
    known = {level: sorted({of[row] for row in train} - {""}) for level, of in names.items()}
    known = {level: classes for level, classes in known.items() if classes}
    number = {level: {name: i for i, name in enumerate(classes)} for level, classes in known.items()}
    labels = {
        level: np.array([of.get(name, UNKNOWN) for name in names[level]], dtype=np.int64)
        for level, of in number.items()
    }
    products = _Products(store, titles, labels, device)
    torch.manual_seed(how.seed)
    tuned = FashionBertForRecognition.from_model(model, {level: len(of) for level, of in known.items()}).to(device)
    epoch, share = _train(tuned, products, train, chosen_by, how, generator)
    found = {level: np.array(known[level])[of] for level, of in predict(tuned, products, measured).items()}
    done = {"epochs": how.epochs, "epoch_chosen": epoch, "accuracy_chosen_by": share, "lr": how.lr}
    return found, done | {"trained_on": len(train), "chosen_by": len(chosen_by), "seed": how.seed}


def _train(
    tuned: FashionBertForRecognition, products: _Products, train: np.ndarray, chosen_by: np.ndarray, how: Finetuning,
    generator: np.random.Generator,
) -> tuple[int, float]:  # fmt: skip
    """Train ``tuned``, which then has the weights of the best epoch; which that was, from 1, and its accuracy."""
    steps = how.epochs * -(-len(train) // how.batch_size)
    config = TrainConfig(output="none", steps=steps, lr=how.lr, weight_decay=0.01)
    optimizer = build_optimizer(tuned, config, products.device)
    schedule = build_schedule(optimizer, config)
    best: tuple[float, int, dict[str, torch.Tensor]] = (-1.0, 0, {})
    with progress_bar() as bar:
        task = bar.add_task("fine-tuning", total=steps)
        for epoch in range(1, how.epochs + 1):
            tuned.train()
            order = generator.permutation(train)
            for start in range(0, len(order), how.batch_size):
                rows = order[start : start + how.batch_size]
                recognition_loss(tuned(products.batch(rows)), products.labels_of(rows)).backward()
                torch.nn.utils.clip_grad_norm_(tuned.parameters(), config.gradient_clipping)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                bar.advance(task)
            share = _accuracy(tuned, products, chosen_by)
            if share > best[0]:
                best = share, epoch, {name: tensor.clone() for name, tensor in tuned.state_dict().items()}
    tuned.load_state_dict(best[2])
    return best[1], best[0]


def _accuracy(tuned: FashionBertForRecognition, products: _Products, rows: np.ndarray) -> float:
    """Mean over the levels, of the products whose class is known."""
    shares = []
    for level, predicted in predict(tuned, products, rows).items():
        label = products.labels[level][rows]
        shares.append((predicted == label)[label != UNKNOWN].mean() if (label != UNKNOWN).any() else 0.0)
    return float(np.mean(shares))


@torch.no_grad()
def predict(tuned: FashionBertForRecognition, products: _Products, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Level -> the number of the likeliest class of each row (n,)."""
    tuned.eval()
    order = np.argsort(products.titles.lengths(rows), kind="stable")
    found = {level: np.empty(len(rows), dtype=np.int64) for level in tuned.classes}
    for start in range(0, len(order), MEASURING):
        chosen = order[start : start + MEASURING]
        for level, logits_BC in tuned.logits(products.batch(rows[chosen])).items():
            found[level][chosen] = logits_BC.argmax(1).cpu().numpy()
    return found
