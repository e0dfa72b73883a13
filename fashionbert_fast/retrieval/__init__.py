"""Retrieval: a vector a product, an index of them, and queries by words, by a photo or by both.

embed.py makes vectors (VECTORS, a directory), index.py an index of them (INDEX, another), search.py answers, serve.py
does so on a local page, engines.py hands vectors to Qdrant.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from fashionbert_fast.errors import InputError

OF = ("both", "text", "image")  # what of a product its vector is of
KINDS = ("flat", "hnsw", "ivf")
TOP = 10  # products of an answer


def optional(module: str) -> ModuleType:
    """A package of the `search` extra. InputError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{module} is not installed; pip install 'fashionbert_fast[search]'") from error
