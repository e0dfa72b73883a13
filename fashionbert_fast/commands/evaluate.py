"""`fashionbert evaluate`: a checkpoint and a feature store in, a table and a JSON file out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fashionbert_fast.errors import InputError
from fashionbert_fast.evaluation.ranking.protocols import DEFAULT_CANDIDATES, DEFAULT_QUERIES, GROUPINGS, PROTOCOLS
from fashionbert_fast.evaluation.ranking.ranks import RELEASED_BATCH_SIZE
from fashionbert_fast.evaluation.recognition.linear_probe import METHODS
from fashionbert_fast.files import check_writable, read_json, write_json
from fashionbert_fast.run_directory import resolve_model_dir

if TYPE_CHECKING:
    from fashionbert_fast.evaluation.run import Evaluation
    from fashionbert_fast.features.store import FeatureStore
    from fashionbert_fast.inference.scorer import Scorer

QUERIES = "queries"  # the protocol of evaluation/ranking/query_to_item.py
SPLITS = ("validation", "test", "train", "all")
SCORES = ("match", "similarity", "sum", "shortlist", "all")  # evaluation/ranking/choice.py has what they are
MODELS = ("fashionbert", "bert")  # model types of config.json: a saved model, an export
# What draws the candidate lists, unless they are read from a file. Not argparse's defaults, which hide what was asked.
DRAWN = {"split": "validation", "protocol": "fashionbert", "queries": None, "candidates": DEFAULT_CANDIDATES, "seed": 0}
EXAMPLES = """examples:
  fashionbert evaluate --checkpoint runs/first --data stores/shop --protocol fashionbert --json evaluation.json
  fashionbert evaluate --checkpoint runs/first --data stores/shop --protocol full --json full.json
  fashionbert evaluate --checkpoint runs/first --data stores/shop --grouping released-faulty --json as_published.json
  fashionbert evaluate --checkpoint runs/queries --data stores/shop --protocol queries --json queries.json
  torchrun --nproc-per-node 8 -m fashionbert_fast evaluate --checkpoint runs/first --data stores/shop --protocol full

by the cosine of title and photo, by both added up, and the ten most similar in the order of their match:
  fashionbert evaluate --checkpoint runs/first --data stores/shop --score all --shortlist 10 --json scores.json

two models on the same lists, and which is better:
  fashionbert evaluate --checkpoint runs/a --data stores/shop --save-candidates lists.json --scores a.parquet
  fashionbert evaluate --checkpoint runs/b --data stores/shop --candidates-from lists.json --scores b.parquet
  fashionbert compare a.parquet b.parquet

An evaluation that writes a file can be interrupted: the same command goes on from what was scored."""


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
        help="a saved model, a run directory (its newest checkpoint), or a baseline",
    )
    add("--data", required=True, type=Path, metavar="STORE", help="feature store written by `fashionbert prepare`")
    add(
        "--protocol",
        choices=(*PROTOCOLS, QUERIES),
        help="candidates: 101 of a sub-category, or every product; queries: vectors of what shoppers asked for against "
        "those of every product (default: fashionbert)",
    )
    add("--json", type=Path, metavar="FILE", help="write the figures here (default: only the table)")
    add("--split", choices=SPLITS, help="rows to evaluate (default: validation)")
    add("--queries", type=int, metavar="N", help=f"queries (default: {DEFAULT_QUERIES} for fashionbert, else all)")
    add(
        "--candidates",
        type=int,
        metavar="C",
        help=f"candidates of a query, fashionbert only (default: {DEFAULT_CANDIDATES})",
    )
    add("--seed", type=int, help="draws queries, candidates and negatives (default: 0)")
    # fmt: off
    add("--save-candidates", type=Path, metavar="FILE", help="write the lists here, for other models and stores (JSON)")
    add("--candidates-from", type=Path, metavar="FILE",
        help="lists that were saved, in place of --protocol, --split, --queries, --candidates and --seed")
    add("--scores", type=Path, metavar="FILE",
        help="write the rank and score of every query here (Parquet), for `fashionbert compare`")
    add("--score", choices=SCORES,
        help="what pairs are ranked by: the probability that they match, the cosine of their vectors, the sum of both, "
        "or each (all), of which the best on validation rows is reported first (default: match)")
    add("--shortlist", type=int, metavar="K", help="also report: the K most similar in the order of their match")
    add("--gallery", type=Path, metavar="FILE", help="write queries and what was found for them as one HTML page")
    add("--gallery-queries", type=int, metavar="N", default=30, help="of each direction on it (default: %(default)s)")
    add("--recognition", choices=METHODS,
        help="of categories and sub-categories: a linear probe on [CLS], fine-tuning, or both (default: the probe "
        "under full, none under fashionbert)")
    add("--finetune-epochs", type=int, metavar="N", default=3, help="over the training split (default: %(default)s)")
    add("--finetune-products", type=int, metavar="N", help="of the training split, drawn by --seed (default: all)")
    add("--finetune-lr", type=float, metavar="LR", default=1e-4, help="peak learning rate (default: %(default)s)")
    # fmt: on
    add(
        "--grouping",
        choices=GROUPINGS,
        default="correct",
        help="released-faulty: the released evaluator's fault, to compare with published tables (default: %(default)s)",
    )
    add(
        "--released-batch-size",
        type=int,
        metavar="B",
        default=RELEASED_BATCH_SIZE,
        help="prediction batch of that fault (default: %(default)s)",
    )
    add(
        "--batch-size",
        type=int,
        metavar="B",
        help="of a forward pass (default: 128); another moves scores by float noise",
    )
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16: faster, close pairs may change places")
    add("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")


def run(args: argparse.Namespace) -> int:
    """Evaluate as the options say; 0 when the figures are printed and written. InputError for what a user can mend."""
    for name in ("batch_size", "gallery_queries"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')}: {value} is too few; give 1 or more")
    outputs = [path for path in (args.json, args.scores, args.save_candidates, args.gallery) if path is not None]
    for path in outputs:
        check_writable(path)
    drawn = {name: getattr(args, name) for name in DRAWN}
    asked = [name for name, value in drawn.items() if value is not None]
    if args.candidates_from is not None and asked:
        raise InputError(f"--{asked[0]}: the lists of {args.candidates_from} have theirs; leave it out")
    drawn = {name: DRAWN[name] if value is None else value for name, value in drawn.items()}
    keep = outputs[0].with_name(f".{outputs[0].name}.parts") if outputs else None
    from fashionbert_fast.distributed import host_ranks
    from fashionbert_fast.inference.shards import forget

    try:
        with host_ranks():
            (_run_queries if drawn["protocol"] == QUERIES else _run_pairs)(args, drawn, keep)
            forget(keep)
    except KeyboardInterrupt:
        kept = f"what was scored is kept in {keep}; the same command goes on from there" if keep else ""
        raise KeyboardInterrupt(kept) from None
    return 0


def _run_pairs(args: argparse.Namespace, drawn: dict[str, Any], keep: Path | None) -> None:
    from fashionbert_fast.distributed import is_main
    from fashionbert_fast.evaluation.recognition.finetuning import Finetuning
    from fashionbert_fast.evaluation.run import run_evaluation

    finetuning = Finetuning(
        epochs=args.finetune_epochs, lr=args.finetune_lr, products=args.finetune_products, seed=drawn["seed"]
    )
    evaluation = run_evaluation(
        args.checkpoint, args.data, **drawn, candidates_from=args.candidates_from, grouping=args.grouping,
        released_batch_size=args.released_batch_size, recognise=args.recognition, finetuning=finetuning,
        batch_size=args.batch_size, device=args.device, precision=args.precision, keep=keep, score=args.score,
        shortlist=args.shortlist, load=load_scorer,
    )  # fmt: skip
    if is_main():
        _write(args, evaluation)


def load_scorer(checkpoint: Path, store: FeatureStore, *how: Any) -> tuple[Scorer, Path]:
    """The scorer of whatever model lies there, by the ``model_type`` of its config.json. how: the further arguments of
    `evaluation.run.load_scorer`. InputError where the type is none that can be evaluated."""
    from fashionbert_fast.baselines import MODEL_TYPE, systems
    from fashionbert_fast.evaluation import run as fashionbert

    model_dir = resolve_model_dir(checkpoint)
    kind = read_json(model_dir / "config.json", "give a directory save_pretrained wrote").get("model_type")
    if kind in MODELS:
        return fashionbert.load_scorer(model_dir, store, *how)
    if kind == MODEL_TYPE:
        return systems.load_scorer(model_dir, store, *how)
    raise InputError(f"{model_dir / 'config.json'}: model_type {kind!r:.50} cannot be evaluated; give one of "
                     f"{', '.join((*MODELS, MODEL_TYPE))}")  # fmt: skip


def _write(args: argparse.Namespace, evaluation: Evaluation) -> None:
    from rich.console import Console

    from fashionbert_fast.evaluation.reports.candidate_files import write_lists
    from fashionbert_fast.evaluation.reports.gallery import write_gallery
    from fashionbert_fast.evaluation.reports.scores import write_scores
    from fashionbert_fast.evaluation.reports.table import table

    result, store, scored = evaluation.result, evaluation.store, evaluation.scored
    Console().print(table(result))
    if args.save_candidates is not None:
        write_lists(args.save_candidates, evaluation.lists)
    if args.scores is not None:
        write_scores(args.scores, store, scored, lists=result["lists"], run=run_name(result))
    if args.gallery is not None:
        title = f"{result['checkpoint']} on {result['data']}, {result['split']}"
        photos = write_gallery(args.gallery, store, scored, queries=args.gallery_queries, title=title,
                               score=result["score"])  # fmt: skip
        if photos["missing"]:
            print(f"{args.gallery}: {photos['missing']} photos are not where the store says they lie")
    if args.json is not None:
        write_json(args.json, result)


def run_name(result: dict[str, Any]) -> str:
    """What `compare` calls it: two scores of one model are told apart."""
    return result["checkpoint"] + ("" if result["score"] == "match" else f" by {result['score']}")


def _run_queries(args: argparse.Namespace, drawn: dict[str, Any], keep: Path | None) -> None:
    if args.grouping != "correct":
        raise InputError(f"--grouping {args.grouping}: exists only under protocol 'fashionbert'; leave it out")
    for name in ("candidates", "save_candidates", "scores", "gallery", "recognition", "score", "shortlist"):
        if getattr(args, name) is not None:
            raise InputError(f"--{name.replace('_', '-')}: goes with protocols that rank pairs; leave it out")
    from rich.console import Console

    from fashionbert_fast.distributed import is_main
    from fashionbert_fast.evaluation.ranking import query_to_item

    result = query_to_item.evaluate_queries(
        args.checkpoint, args.data, split=drawn["split"], queries=drawn["queries"], seed=drawn["seed"],
        batch_size=args.batch_size, device=args.device, precision=args.precision, keep=keep,
    )  # fmt: skip
    if is_main():
        Console().print(query_to_item.table(result))
        if args.json is not None:
            write_json(args.json, result)
