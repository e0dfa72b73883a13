"""Whether an ONNX graph computes what its model computes: pairs of many lengths and batches of many sizes through
both, the graph in onnxruntime, the model as it trains and scores, on its packed axis.

Shapes: B pairs of a batch, L tokens of its longest title, P patches, D patch feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fashionbert_fast.data.titles import TokenizedTitles
from fashionbert_fast.export.onnx import GRAPHS, Inputs
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.model.config import FashionBertConfig
from fashionbert_fast.objectives.pretraining import FashionBertForPreTraining

BATCHES = (1, 2, 9, 28, 60)  # pairs: one alone, as many as were traced, more
PAIRS = sum(BATCHES)
# Absolute, of probabilities and of the numbers of a vector of length 1. Measured on MiniLM: at most 3.3e-6; in vectors
# 4e-4 and more where GELU is computed by tanh, 5e-5 and more where LayerNorm has an epsilon of 1e-5.
TOLERANCE = 3e-5
Pair = tuple[np.ndarray, torch.Tensor]  # ids of a title, special tokens included; features (P, D) float32


class ResultsDiffer(RuntimeError):
    """A graph does not compute what its model computes. The message is one line naming the graph."""


def drawn_pairs(config: FashionBertConfig, max_text_tokens: int) -> list[Pair]:
    """Titles of random tokens, of all lengths from 1, which is the first's, to ``max_text_tokens``; random patches."""
    generator = np.random.default_rng(0)
    shortest, *others = np.linspace(1, max_text_tokens, PAIRS).round().astype(np.int64)
    features_BPD = generator.standard_normal((PAIRS, config.patches, config.patch_feature_size), np.float32)
    titles = [generator.integers(0, config.vocab_size, length) for length in (shortest, *generator.permutation(others))]
    return list(zip(titles, torch.from_numpy(features_BPD), strict=True))


def pairs_of_store(store: FeatureStore, titles: TokenizedTitles) -> list[Pair]:
    """Titles from all over a store, each with its own photo; over again where there are fewer than `PAIRS`."""
    rows = np.resize(np.linspace(0, len(store) - 1, min(PAIRS, len(store))).astype(np.int64), PAIRS)
    return [(titles.title(row)[0].astype(np.int64), store.features([row])[0].float()) for row in rows.tolist()]


def batches(pairs: Sequence[Pair], vocabulary: int) -> list[Inputs]:
    """``pairs`` in batches of `BATCHES`, each padded to its longest title, by random tokens: nobody may read those."""
    generator = np.random.default_rng(1)
    found, start = [], 0
    for size in BATCHES:
        part, start = pairs[start : start + size], start + size
        longest = max(len(id_N) for id_N, _ in part)
        input_ids_BL = generator.integers(0, vocabulary, (size, longest))
        attention_mask_BL = np.zeros_like(input_ids_BL)
        for b, (id_N, _) in enumerate(part):
            input_ids_BL[b, : len(id_N)], attention_mask_BL[b, : len(id_N)] = id_N, 1
        features_BPD = torch.stack([features_PD for _, features_PD in part])
        tensors = (torch.from_numpy(input_ids_BL), torch.from_numpy(attention_mask_BL), features_BPD)
        found.append(dict(zip(("input_ids", "attention_mask", "patch_features"), tensors, strict=True)))
    return found


@torch.inference_mode()
def largest_difference(model: FashionBertForPreTraining, name: str, path: Path, inputs: Sequence[Inputs]) -> float:
    """Between what the graph ``name`` at ``path`` gives in onnxruntime and what a float32 ``model`` in eval mode gives.

    Raises:
        ResultsDiffer: it exceeds `TOLERANCE`, there is a NaN or another shape, or the graph cannot be run.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    graph, largest = GRAPHS[name], 0.0
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        results = [session.run([graph.output], {n: batch[n].numpy() for n in graph.inputs}) for batch in inputs]
    except Exception as error:  # the runtime's share no class
        reason = " ".join(str(error).split())[:200]
        raise ResultsDiffer(f"{path.name}: cannot be run in onnxruntime ({reason})") from error
    for batch, (result,) in zip(inputs, results, strict=True):
        found = np.asarray(result)
        expected = graph.expected(model, batch).numpy()
        if found.shape != expected.shape:
            raise ResultsDiffer(f"{path.name}: gives {found.shape} in onnxruntime, the model {expected.shape}")
        difference = float(np.abs(found - expected).max())
        largest = max(largest, difference)
        if not difference <= TOLERANCE:
            sizes = " x ".join(map(str, batch["input_ids"].shape))
            raise ResultsDiffer(f"{path.name}: differs from the model by {difference:.1e} in onnxruntime, on {sizes} "
                                f"tokens; at most {TOLERANCE:.0e} is rounding")  # fmt: skip
    return largest
