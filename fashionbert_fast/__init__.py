"""fashionbert_fast: the fastest honest way to pre-train FashionBERT."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fashionbert_fast.model.config import FashionBertConfig
    from fashionbert_fast.objectives.pretraining import FashionBertForPreTraining
    from fashionbert_fast.objectives.query_title_image import FashionBertForQueries
    from fashionbert_fast.processor import FashionBertProcessor

__version__ = "0.1.0"
__all__ = [
    "FashionBertConfig", "FashionBertForPreTraining", "FashionBertForQueries", "FashionBertProcessor", "__version__",
]  # fmt: skip
# Imported on first use, and torch with them, so that `fashionbert --help` answers at once.
HOMES = {
    "FashionBertConfig": "fashionbert_fast.model.config",
    "FashionBertForPreTraining": "fashionbert_fast.objectives.pretraining",
    "FashionBertForQueries": "fashionbert_fast.objectives.query_title_image",
    "FashionBertProcessor": "fashionbert_fast.processor",
}


def __getattr__(name: str):
    if name in HOMES:
        return getattr(importlib.import_module(HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
