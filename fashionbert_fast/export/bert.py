"""A directory that is a Hugging Face BERT and the whole model at once, with its card, and ONNX graphs where asked for.

OUT/config.json, model.safetensors              BERT's names and fields, and ours beside them (model/directories.py)
OUT/tokenizer.json, tokenizer_config.json       and vocab.txt where the checkpoint has one
OUT/processor_config.json, patch_features.json  for FashionBertProcessor
OUT/README.md                                   the model card
OUT/onnx/GRAPH.onnx, onnx.json                  graphs, and what the check of each found
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fashionbert_fast import __version__
from fashionbert_fast.config import load_config
from fashionbert_fast.data.titles import TokenizedTitles
from fashionbert_fast.data.tokenizer import copy_tokenizer, load_tokenizer
from fashionbert_fast.errors import InputError
from fashionbert_fast.export import check, onnx
from fashionbert_fast.export.card import Facts, card, read_evaluation
from fashionbert_fast.features.manifest import Manifest, require_same_features
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.files import read_json, write_json, written_whole
from fashionbert_fast.model.directories import exported, write_files
from fashionbert_fast.objectives.pretraining import FashionBertForPreTraining
from fashionbert_fast.processor import MANIFEST, FashionBertProcessor, max_text_tokens
from fashionbert_fast.run_directory import MANIFEST as CHECKPOINT_MANIFEST
from fashionbert_fast.run_directory import resolve_model_dir, sha256

SLACK = 2**25  # bytes, of tokenizer, card and what a graph has beside its weights


@dataclass
class Options:
    """What of an export is to be chosen. None: left out of the card."""

    license: str | None = None  # as the hub spells it
    base_model: str | None = None  # hub id of the core; also found by itself, where that is certain
    evaluation: Path | None = None  # what `fashionbert evaluate --json` wrote
    graphs: list[str] | None = None  # of ONNX; empty: all that the model has; None: none
    pairs: Path | None = None  # a store, whose titles and photos the graphs are checked on; None: drawn ones


def export(
    checkpoint: Path, out: Path, options: Options, on_graph: Callable[[str, int, int], None] = lambda *_: None
) -> dict[str, Any]:
    """Write ``out``, all of it or nothing. Returns what onnx.json says; {} without graphs.

    Args:
        checkpoint: a run, a checkpoint or a model directory.
        on_graph: called before each graph, with its name, how many are done and how many there are.

    Raises:
        InputError: no model is there, ``out`` holds something or cannot be written, or an option does not fit.
        check.ResultsDiffer: a graph does not compute what the model computes.
    """
    source = resolve_model_dir(checkpoint)
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise InputError(f"{out}: exists and is not empty; choose another directory")
    if options.graphs is not None:
        onnx.require_packages()
    evaluation = read_evaluation(options.evaluation, source) if options.evaluation else {}
    model = FashionBertForPreTraining.from_pretrained(source)
    graphs = onnx.graphs_of(model, options.graphs) if options.graphs is not None else []
    _check_room(out, model, len(graphs))
    facts = _facts(source, model, out.resolve().name, options, evaluation, graphs)
    inputs = _inputs(model, source, facts.max_text_tokens, options.pairs) if graphs else []
    try:
        with written_whole(out) as folder:
            write_files(folder, *exported(model))
            _write_processor(source, facts.manifest, folder)
            (folder / "README.md").write_text(card(facts))
            return _write_graphs(model.float(), graphs, folder, facts, inputs, on_graph)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{out}: cannot be written ({error}); choose another directory") from error


def _check_room(out: Path, model: FashionBertForPreTraining, graphs: int) -> None:
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    needed = SLACK + weights + graphs * sum(4 * tensor.numel() for tensor in model.parameters())
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise InputError(f"{out}: up to {needed / 1e9:.1f} GB are to be written, {free / 1e9:.1f} GB are free there; "
                         "make room, choose another directory or fewer graphs")  # fmt: skip


def _has_tokenizer(directory: Path) -> bool:
    return any((directory / name).exists() for name in ("tokenizer.json", "vocab.txt"))


def _write_processor(source: Path, manifest: Manifest | None, folder: Path) -> None:
    """What there is of a tokenizer and a manifest: what `save_pretrained` wrote from Python has neither beside it."""
    if manifest is not None:
        write_json(folder / MANIFEST, manifest.to_dict())
    if not _has_tokenizer(source):
        return
    copy_tokenizer(source, folder)
    if manifest is not None:
        tokens = max_text_tokens(source)
        FashionBertProcessor(load_tokenizer(folder), manifest, max_text_tokens=tokens).save_pretrained(folder)


def _manifest(source: Path, model: FashionBertForPreTraining) -> Manifest | None:
    """Of the patch features that the model knows. Where the catalogue lay on this machine is not given away."""
    if model.feature_manifest is None:
        return None
    try:
        manifest = Manifest.from_dict(model.feature_manifest)
    except (ValueError, TypeError) as error:
        raise InputError(f"{source / MANIFEST}: {error}; copy it again from the model's run") from error
    return dataclasses.replace(manifest, source=Path(manifest.source).name)


def _facts(
    source: Path,
    model: FashionBertForPreTraining,
    name: str,
    options: Options,
    evaluation: dict[str, Any],
    graphs: list[str],
) -> Facts:
    run, manifest = source.parent / "config.yaml", source.parent / CHECKPOINT_MANIFEST
    return Facts(
        name=name,
        model=model.config,
        manifest=_manifest(source, model),
        run=load_config(run) if run.exists() else None,
        step=read_json(manifest).get("step") if manifest.exists() else None,
        evaluation=evaluation,
        license=options.license,
        base_model=options.base_model,
        max_text_tokens=max_text_tokens(source),
        graphs=graphs,
    )


def _inputs(
    model: FashionBertForPreTraining, source: Path, max_text_tokens: int, pairs: Path | None
) -> list[onnx.Inputs]:
    """What the graphs are checked on."""
    c = model.config
    if pairs is None:
        return check.batches(check.drawn_pairs(c, max_text_tokens), c.vocab_size)
    store = FeatureStore.open(pairs)
    if model.feature_manifest is not None:
        require_same_features(model.feature_manifest, store.manifest, f"{source} and {pairs}")
    if len(store) == 0 or (store.manifest.patches, store.manifest.feature_size) != (c.patches, c.patch_feature_size):
        raise InputError(f"{pairs}: has no products of {c.patches} patches of {c.patch_feature_size} numbers, which "
                         "the model takes; give a store like the one that it was trained on")  # fmt: skip
    titles = TokenizedTitles(store.titles, load_tokenizer(source), max_text_tokens)
    return check.batches(check.pairs_of_store(store, titles), c.vocab_size)


def _write_graphs(
    model: FashionBertForPreTraining,
    graphs: list[str],
    folder: Path,
    facts: Facts,
    inputs: list[onnx.Inputs],
    on_graph: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """Write and check each of a float32 model."""
    if not graphs:
        return {}
    (folder / "onnx").mkdir()
    metadata = {
        "model": facts.name,
        "max_text_tokens": str(facts.max_text_tokens),
        "features_fingerprint": facts.manifest.fingerprint if facts.manifest else "",
        "fashionbert_fast": __version__,
    }
    report: dict[str, Any] = {
        "opset": onnx.OPSET,
        "pairs": check.PAIRS,
        "batches": [list(batch["input_ids"].shape) for batch in inputs],  # pairs, tokens
        "tolerance": check.TOLERANCE,
        "versions": {name: version(name) for name in ("torch", *onnx.PACKAGES)} | {"fashionbert_fast": __version__},
        "metadata": metadata,
        "graphs": {},
    }
    for number, name in enumerate(graphs):
        on_graph(name, number, len(graphs))
        path = folder / "onnx" / f"{name}.onnx"
        onnx.write_graph(model, name, path, metadata)
        report["graphs"][name] = {
            "inputs": list(onnx.GRAPHS[name].inputs),
            "output": onnx.GRAPHS[name].output,
            "largest_difference": check.largest_difference(model, name, path, inputs),
            "files": {file.name: sha256(file) for file in sorted(path.parent.glob(f"{path.name}*"))},
        }
    write_json(folder / "onnx" / "onnx.json", report)
    return report
