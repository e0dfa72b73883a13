"""`fashionbert evaluate`: a checkpoint and a feature store in, a table and a JSON file out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from fashionbert_fast.errors import InputError
from fashionbert_fast.evaluation.protocols import DEFAULT_CANDIDATES, DEFAULT_QUERIES, GROUPINGS, PROTOCOLS, evaluate
from fashionbert_fast.evaluation.ranking import RECALLS, RELEASED_BATCH_SIZE
from fashionbert_fast.files import check_writable, write_json

SPLITS = ("validation", "test", "train", "all")
TWINS = {
    "queries_with_a_twin_title": "with a candidate of the very same title",
    "queries_with_a_twin_photo": "with a candidate of the very same photo",
    "queries_with_other_views": "whose product has other views, which are no candidates",
}
EXAMPLES = """examples:
  fashionbert evaluate --checkpoint runs/first --data stores/shop --protocol fashionbert --json evaluation.json
  fashionbert evaluate --checkpoint runs/first --data stores/shop --protocol full --json full.json
  fashionbert evaluate --checkpoint runs/first --data stores/shop --grouping released-faulty --json as_published.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fashionbert evaluate`."""
    parser.description = "Rank titles against photos and photos against titles with a trained checkpoint."
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add(
        "--checkpoint",
        required=True,
        type=Path,
        metavar="DIR",
        help="a saved model, or a run directory (its newest checkpoint)",
    )
    add("--data", required=True, type=Path, metavar="STORE", help="feature store written by `fashionbert prepare`")
    add(
        "--protocol",
        choices=PROTOCOLS,
        default="fashionbert",
        help="candidates: 101 of a sub-category, or every product",
    )
    add("--json", type=Path, metavar="FILE", help="write the figures here (default: only the table)")
    add("--split", choices=SPLITS, default="validation", help="rows to evaluate (default: %(default)s)")
    add("--queries", type=int, metavar="N", help=f"queries (default: {DEFAULT_QUERIES} for fashionbert, all for full)")
    add(
        "--candidates",
        type=int,
        metavar="C",
        default=DEFAULT_CANDIDATES,
        help="candidates of a query, fashionbert only (default: %(default)s)",
    )
    add("--seed", type=int, default=0, help="draws queries, candidates and negatives (default: %(default)s)")
    add(
        "--grouping",
        choices=GROUPINGS,
        default="correct",
        help="released-faulty: the released evaluator's fault, to compare with published tables",
    )
    add(
        "--released-batch-size",
        type=int,
        metavar="B",
        default=RELEASED_BATCH_SIZE,
        help="prediction batch of that fault (default: %(default)s)",
    )
    add("--batch-size", type=int, metavar="B", help="pairs of a forward pass; does not change the figures")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16: faster, close pairs may change places")
    add("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")


def run(args: argparse.Namespace) -> int:
    """Evaluate as the options say; 0 when the figures are printed and written. InputError for what a user can mend."""
    if args.batch_size is not None and args.batch_size < 1:
        raise InputError(f"--batch-size: {args.batch_size} is no batch size; give 1 or more")
    if args.json is not None:
        check_writable(args.json)
    result = evaluate_checkpoint(
        args.checkpoint,
        args.data,
        split=args.split,
        batch_size=args.batch_size,
        device=args.device,
        precision=args.precision,
        protocol=args.protocol,
        queries=args.queries,
        candidates=args.candidates,
        seed=args.seed,
        grouping=args.grouping,
        released_batch_size=args.released_batch_size,
    )
    Console().print(table(result))
    if args.json is not None:
        write_json(args.json, result)
    return 0


def evaluate_checkpoint(
    checkpoint: Path,
    data: Path,
    *,
    split: str = "validation",
    batch_size: int | None = None,
    device: str | None = None,
    precision: str = "fp32",
    **options: Any,
) -> dict[str, Any]:
    """Open the store and the checkpoint, check that their features are the same, and ``evaluate(**options)``.

    Adds "precision", "split", "checkpoint" and "data" to the result, so that a figure says where it comes from, and
    "leaks": how many products of a held-out split share a title, a photo or a group with training.
    """
    from fashionbert_fast.data.store import FeatureStore
    from fashionbert_fast.data.twins import leaks

    store = FeatureStore.open(data)
    rows = split_rows(store, split, data)
    scorer, model_dir = load_scorer(checkpoint, store, data, batch_size, device, precision)
    result = evaluate(store, rows, scorer.score, vectors=scorer.vectors, **options)
    result |= {"precision": precision, "split": split, "checkpoint": str(model_dir), "data": str(data)}
    if split not in ("train", "all"):
        result["leaks"] = leaks(store)[split]
    return result


def load_scorer(
    checkpoint: Path,
    store: Any,
    data: Path,
    batch_size: int | None = None,
    device: str | None = None,
    precision: str = "fp32",
) -> tuple[Any, Path]:
    """The scorer of a checkpoint on a store, and the model directory it was read from.

    checkpoint: a saved model or a run directory. InputError when there is no model, when it was trained on other patch
    features than the store holds, or when the device does not exist.
    """
    from fashionbert_fast.data.batches import TokenizedTitles
    from fashionbert_fast.data.store import require_same_features
    from fashionbert_fast.engine.checkpoint import resolve_model_dir
    from fashionbert_fast.evaluation.scorer import DEFAULT_BATCH_SIZE, PairScorer
    from fashionbert_fast.model.checkpoint import load_tokenizer
    from fashionbert_fast.model.fashionbert import FashionBertForPreTraining

    target = pick_device(device)
    model_dir = resolve_model_dir(checkpoint)
    model = FashionBertForPreTraining.from_pretrained(model_dir)
    tokenizer = load_tokenizer(model_dir)
    if model.feature_manifest is not None:
        require_same_features(model.feature_manifest, store.manifest, f"{model_dir} and {data}")
    trained, stored = (
        (model.config.patches, model.config.patch_feature_size),
        (store.manifest.patches, store.manifest.feature_size),
    )
    if trained != stored:  # a model saved without a manifest still has to fit
        raise InputError(
            f"{data}: {stored[0]} patches of {stored[1]} features, but {model_dir} takes {trained[0]} of {trained[1]}; "
            "prepare the catalogue with the model's grid and encoder"
        )
    titles = TokenizedTitles(store.titles, tokenizer, max_text_tokens(model_dir, model.config))
    model.to(target)
    batch_size = batch_size or DEFAULT_BATCH_SIZE
    return PairScorer(model, store, titles, batch_size=batch_size, precision=precision), model_dir


def max_text_tokens(model_dir: Path, config: Any) -> int:
    """Where titles are cut: as in the run the checkpoint belongs to, else at the reference's 64 tokens."""
    from fashionbert_fast.config import DataConfig, load_config

    run_config = model_dir.parent / "config.yaml"
    wanted = load_config(run_config).data.max_text_tokens if run_config.exists() else DataConfig().max_text_tokens
    return min(wanted, config.max_position_embeddings)


def pick_device(name: str | None) -> Any:
    """The torch device of that name (None: CUDA where there is one). InputError where it does not exist."""
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"--device: {name!r} cannot be used ({reason}); give cpu or leave it out") from error
    return device


def split_rows(store: Any, split: str, data: Path) -> np.ndarray:
    """Rows of a split. InputError naming the store and the splits it has when there are none."""
    rows = store.rows(None if split == "all" else split)
    if len(rows) == 0:
        has = ", ".join(sorted({name or "(none)" for name in store.splits})) or "(no products)"
        raise InputError(f"{data}: split {split!r} has no products, the store has {has}; choose another --split")
    return rows


def table(result: dict[str, Any]) -> Table:
    """The figures as a table of percentages, with what a guesser would get."""
    title = f"protocol {result['protocol']}: {result['queries']} queries, {result['candidates']} candidates each"
    faulty = result["grouping"] == "released-faulty"
    shown = Table(title=title + (" (released, FAULTY grouping)" if faulty else ""), caption=_caption(result))
    shown.add_column("")
    names = list(result["image_to_text"])
    for name in names:
        shown.add_column(name, justify="right")
    shown.add_column("median rank", justify="right")
    for direction in ("image_to_text", "text_to_image"):
        recall = [f"{100 * result[direction][name]:.2f}" for name in names]
        shown.add_row(direction.replace("_to_", " -> "), *recall, f"{result['median_rank'][direction]:g}")
    if not faulty:
        chance = [f"{100 * min(1.0, k / result['candidates']):.2f}" for k in RECALLS]
        shown.add_row("chance", *chance, f"{(result['candidates'] + 1) / 2:g}", style="dim")
        _add_lists(shown, result)
    return shown


def _add_lists(shown: Table, result: dict[str, Any]) -> None:
    """Recall apart for lists that were and were not topped up, where there are both."""
    by_list = result.get("by_list", {})
    for name, found in by_list.items() if len(by_list) > 1 else ():
        shown.add_section()
        shown.add_row(f"{name.replace('_', ' ')} ({found['queries']})", style="dim")
        for direction in ("image_to_text", "text_to_image"):
            recall = [f"{100 * value:.2f}" for value in found[direction].values()]
            shown.add_row(direction.replace("_to_", " -> "), *recall)


def _caption(result: dict[str, Any]) -> str:
    lines = [f"alignment accuracy {100 * result['alignment_accuracy']:.2f} (chance 50.00)"]
    if result["topped_up"]:
        lines.append(
            f"lists topped up: {result['topped_up_from_category']} from the category, "
            f"{result['topped_up_from_anywhere']} from anywhere"
        )
    for key, what in TWINS.items():
        if result[key]:
            lines.append(f"queries {what}: {result[key]}")
    found = result.get("leaks", {"products": 0})
    if found["products"]:
        lines.append(
            f"WARNING: {found['products']} products of split {result['split']} are known from training "
            f"({found['title']} by title, {found['photo']} by photo, {found['group']} by group): these figures "
            "flatter the model; a hold-out drawn by fashionbert prepare keeps such products apart"
        )
    for level in ("category", "subcategory"):
        found = result.get("recognition", {}).get(level)
        if found and "skipped" not in found:
            lines.append(
                f"{level} recognition: accuracy {100 * found['accuracy']:.2f}, macro-F1 {100 * found['macro_f1']:.2f} "
                f"(commonest class {100 * found['majority']:.2f})"
            )
    return "\n".join(lines)
