"""fashionbert_fast: the fastest honest way to pre-train FashionBERT."""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["FashionBertConfig", "FashionBertForPreTraining", "__version__"]


def __getattr__(name: str):
    """Import the model (and torch with it) on first use, so that `fashionbert --help` answers at once."""
    if name == "FashionBertConfig":
        from fashionbert_fast.model.config import FashionBertConfig

        return FashionBertConfig
    if name == "FashionBertForPreTraining":
        from fashionbert_fast.objectives.pretraining import FashionBertForPreTraining

        return FashionBertForPreTraining
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
