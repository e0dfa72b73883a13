"""ONNX graphs of a model. `export/check.py` proves that they compute what it computes.

    scorer          input_ids, attention_mask, patch_features -> probability (B,)
    text_vectors    input_ids, attention_mask                 -> vectors (B, E), of titles
    query_vectors   the same, of queries, where the model has a segment for them
    image_vectors   patch_features                            -> vectors (B, E)
    pair_vectors    input_ids, attention_mask, patch_features -> vectors (B, E)

A graph each: it asks for what it reads, and onnxruntime refuses other sizes.

    input_ids, attention_mask   (B, L) int64: any B, any L of 1 to the model's positions; 1 at tokens, 0 at padding
    patch_features              (B, P, D) float32
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fashionbert_fast.data.packing import pack_unmasked
from fashionbert_fast.errors import InputError
from fashionbert_fast.export import padded
from fashionbert_fast.model.embeddings import TEXT_SEGMENT
from fashionbert_fast.objectives.pretraining import FashionBertForPreTraining as Model

OPSET = 20  # the first with GELU as an operator
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
TEXT, IMAGE = ("input_ids", "attention_mask"), ("patch_features",)
Inputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Graph:
    """``padded``: what is traced of a model. ``expected``: what it is to give, by the model itself."""

    inputs: tuple[str, ...]
    output: str
    padded: Callable[[Model], nn.Module]
    expected: Callable[[Model, Inputs], torch.Tensor]


def _text_vectors(model: Model, inputs: Inputs, segment: int) -> torch.Tensor:
    live_BL = inputs["attention_mask"].bool()
    nothing = torch.empty(0, model.config.patches, model.config.patch_feature_size), torch.empty(0, dtype=torch.int64)
    texts = pack_unmasked(inputs["input_ids"][live_BL].numpy(), live_BL.sum(1).numpy(), *nothing)
    return model.vectors(texts.in_segment(segment))


def _image_vectors(model: Model, inputs: Inputs) -> torch.Tensor:
    features_BPD = inputs["patch_features"]
    B = len(features_BPD)
    return model.vectors(pack_unmasked(np.empty(0, np.int64), np.zeros(B, np.int64), features_BPD, torch.arange(B)))


GRAPHS = {
    "scorer": Graph(
        TEXT + IMAGE, "probability", padded.PaddedScorer,
        lambda model, inputs: model.score(*(inputs[name] for name in TEXT + IMAGE)),
    ),
    "text_vectors": Graph(
        TEXT, "vectors", padded.PaddedTextVectors,
        lambda model, inputs: _text_vectors(model, inputs, TEXT_SEGMENT),
    ),
    "query_vectors": Graph(
        TEXT, "vectors", lambda model: padded.PaddedTextVectors(model, model.query_segment),
        lambda model, inputs: _text_vectors(model, inputs, model.query_segment),
    ),
    "image_vectors": Graph(IMAGE, "vectors", padded.PaddedImageVectors, _image_vectors),
    "pair_vectors": Graph(
        TEXT + IMAGE, "vectors", padded.PaddedPairVectors,
        lambda model, inputs: model.vectors(model.pack(**inputs)),
    ),
}  # fmt: skip


def require_packages() -> None:
    """InputError where a package that writing or checking a graph needs is not installed."""
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"--onnx: package {name} is not installed; pip install 'fashionbert_fast[onnx]'")


def graphs_of(model: Model, wanted: list[str]) -> list[str]:
    """Names of the graphs to write: ``wanted``, or all that the model has. InputError on one that it has not."""
    has = [name for name in GRAPHS if name != "query_vectors" or model.query_segment != TEXT_SEGMENT]
    for name in wanted:
        if name not in has:
            why = "the model has no segment for queries" if name in GRAPHS else "no such graph"
            raise InputError(f"--onnx {name}: {why}; give some of {', '.join(has)}, or none for all")
    return [name for name in has if name in wanted or not wanted]


def write_graph(model: Model, name: str, path: Path, metadata: Mapping[str, str]) -> None:
    """Trace the graph ``name`` of a float32 ``model`` in eval mode and write it to ``path``; its weights lie beside it
    only where they are more than the 2 GB that a file of ONNX holds.

    Args:
        metadata: to be read from the file, as `onnxruntime.InferenceSession.get_modelmeta().custom_metadata_map`.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    graph, c = GRAPHS[name], model.config
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    text_BL = torch.ones(2, 3, dtype=torch.int64)
    # Each a tensor of its own: of one that comes twice the exporter makes one input.
    examples = {name: text_BL.clone() for name in TEXT}
    examples["patch_features"] = torch.zeros(2, c.patches, c.patch_feature_size)
    shapes = {name: {0: batch, 1: tokens} for name in TEXT} | {"patch_features": {0: batch}}
    with _quiet():
        program = torch.onnx.export(
            graph.padded(model).eval(),
            kwargs={name: examples[name] for name in graph.inputs},
            dynamic_shapes={name: shapes[name] for name in graph.inputs},
            input_names=list(graph.inputs), output_names=[graph.output],
            dynamo=True, opset_version=OPSET, verbose=False,
        )  # fmt: skip
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)  # stack traces, with the paths of this machine
    program.model.metadata_props.update(metadata)
    program.save(path, external_data=False)  # of more than 2 GB: beside it all the same


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of packages that it could have used, and of names of equal sizes."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
