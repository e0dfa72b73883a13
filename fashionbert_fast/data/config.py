"""The `data` section of a configuration: which pairs there are, and what of them is masked."""

from __future__ import annotations

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
