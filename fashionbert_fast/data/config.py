"""The `data` and the `contrastive` section of a configuration: which pairs and products there are, and what of them is
masked."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fashionbert_fast.checks import at_least, one_of, within


@dataclass
class DataConfig:
    """Where the pairs come from and how they are masked."""

    store: str = "???"  # feature store that `fashionbert prepare` wrote
    split: str = "train"  # products to train on: train | validation | all
    max_text_tokens: int = 64  # a longer title is cut, special tokens included
    negatives: str = "category"  # a negative's image comes from: random | category | subcategory
    random_negative_epochs: int = 0  # first epochs with random negatives, whatever `negatives` says
    pairs: str = "coin"  # of each product an epoch: coin (a match or a mismatch) | both (one of each, side by side)
    negative_rate: float = 0.5  # coin: share of mismatches
    predict_negatives: bool = True  # MLM and MPM on negative pairs too, as released (masked they are either way)
    mlm_rate: float = 0.15  # the chance of each word of a title, which is masked whole; at least one a title; 0: none
    mlm_most: int = 10  # masked tokens a title
    patch_rate: float = 0.1  # of the patches
    workers: int | None = (
        None  # processes that assemble batches ahead; 0: none; null: 4 on a GPU (fewer if cores are), 0 on a CPU
    )

    def __post_init__(self) -> None:
        one_of("data.split", self.split, ("train", "validation", "all"))
        one_of("data.negatives", self.negatives, ("random", "category", "subcategory"))
        one_of("data.pairs", self.pairs, ("coin", "both"))
        within("data.max_text_tokens", self.max_text_tokens, 3, 2**16)
        at_least("data.random_negative_epochs", self.random_negative_epochs, 0)
        at_least("data.mlm_most", self.mlm_most, 0)
        within("data.workers", self.workers or 0, 0, 1024)
        for name in ("negative_rate", "mlm_rate", "patch_rate"):
            within(f"data.{name}", getattr(self, name), 0.0, 1.0)


@dataclass
class ContrastiveConfig:
    """The contrastive loss (ITC): titles alone and photos alone are to find each other by cosine."""

    weight: float = 0.0  # factor of the loss beside the three tasks, over the products of their pairs; 0: not beside
    first_steps: int = 0  # steps of it alone, before the three tasks; 0: none
    batch_size: int = 128  # of the first steps: products a process and micro-batch
    subcategory_steps: int = 0  # the last so many of the first steps: products of one sub-category in a batch
    size: int = 256  # numbers of a vector: half of them the core's, half those of small towers beside it
    dropout: float = 0.5  # in the towers
    temperature: float = 0.07  # what cosines are divided by at the start; it is learned, and stays 0.01 or more
    token_rate: float = 0.15  # the chance of each word of a title to be masked
    patch_rate: float = 0.25  # of the patches, masked
    mirror_rate: float = 0.5  # the chance of a photo to be seen with left and right exchanged

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"contrastive.weight must be 0 or more, got {self.weight}")
        at_least("contrastive.first_steps", self.first_steps, 0)
        at_least("contrastive.batch_size", self.batch_size, 2)
        within("contrastive.subcategory_steps", self.subcategory_steps, 0, self.first_steps)
        within("contrastive.size", self.size, 2, 2**16)
        if self.size % 2:
            raise ValueError(f"contrastive.size must be even, got {self.size}")
        within("contrastive.temperature", self.temperature, 0.01, 1.0)
        within("contrastive.dropout", self.dropout, 0.0, 1.0, open_high=True)
        for name in ("token_rate", "patch_rate", "mirror_rate"):
            within(f"contrastive.{name}", getattr(self, name), 0.0, 1.0)

    @property
    def on(self) -> bool:
        """Whether a run has the loss at all."""
        return self.weight > 0 or self.first_steps > 0
