"""FashionBertForRecognition: the category and the sub-category of a product, read off its pooled [CLS].

Shapes: B products, C classes of a level, T rows of the packed axis, H hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
import torch.nn.functional as F
from torch import nn

from fashionbert_fast.data.batch import PackedPairs
from fashionbert_fast.model.config import FashionBertConfig
from fashionbert_fast.model.fashionbert import FashionBert

UNKNOWN = -100  # the label of a product whose class is not known: torch's ignore_index


class FashionBertForRecognition(FashionBert):
    """The core, BERT's pooler (dense + tanh on [CLS]), and a linear layer for each level.

    Args:
        classes: level -> how many it has.
    """

    def __init__(self, config: FashionBertConfig, classes: Mapping[str, int]) -> None:
        self.classes = dict(classes)  # `build_heads` reads it
        super().__init__(config)

    def build_heads(self) -> None:
        H = self.config.hidden_size
        self.pooler = nn.Linear(H, H)
        self.dropout = nn.Dropout(self.config.hidden_dropout_prob)
        self.classifiers = nn.ModuleDict({level: nn.Linear(H, count) for level, count in self.classes.items()})

    @classmethod
    def from_model(cls, model: FashionBert, classes: Mapping[str, int]) -> Self:
        """A float32 model to train: the core of ``model``, and its pooler where it has an alignment head; classifiers
        freshly drawn."""
        own = cls(model.config, classes)
        state = {name.removeprefix("tia_head."): tensor for name, tensor in model.state_dict().items()}
        own.load_state_dict({name: state[name] for name in own.state_dict() if name in state}, strict=False)
        return own

    def forward(self, pairs: PackedPairs) -> dict[str, torch.Tensor]:
        """Level -> (B, C) float32 logits."""
        return self._logits(self.encode(pairs).index_select(0, pairs.cls_row_B))

    def logits(self, pairs: PackedPairs) -> dict[str, torch.Tensor]:
        """The same for inference, without the work of all other rows in the last layer."""
        return self._logits(self.encode_cls(pairs))

    def _logits(self, cls_BH: torch.Tensor) -> dict[str, torch.Tensor]:
        pooled_BH = self.dropout(torch.tanh(self.pooler(cls_BH)))
        return {level: classifier(pooled_BH).float() for level, classifier in self.classifiers.items()}


def recognition_loss(logits: Mapping[str, torch.Tensor], labels: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Sum over the levels of the mean cross-entropy of those products whose class (labels, int64 (B,)) is known."""
    total = torch.zeros((), device=next(iter(logits.values())).device)
    for level, logits_BC in logits.items():
        known = (labels[level] != UNKNOWN).sum().clamp(min=1)
        total = total + F.cross_entropy(logits_BC, labels[level], ignore_index=UNKNOWN, reduction="sum") / known
    return total
