"""`fashionbert evaluate`: a checkpoint and a feature store in, a table and a JSON file out."""

from __future__ import annotations

import argparse
from pathlib import Path

from fashionbert_fast.errors import InputError
from fashionbert_fast.evaluation.protocols import DEFAULT_CANDIDATES, DEFAULT_QUERIES, GROUPINGS, PROTOCOLS
from fashionbert_fast.evaluation.ranking import RELEASED_BATCH_SIZE
from fashionbert_fast.files import check_writable, write_json

QUERIES = "queries"  # the protocol of evaluation/queries.py
SPLITS = ("validation", "test", "train", "all")
EXAMPLES = """examples:
  fashionbert evaluate --checkpoint runs/first --data stores/shop --protocol fashionbert --json evaluation.json
  fashionbert evaluate --checkpoint runs/first --data stores/shop --protocol full --json full.json
  fashionbert evaluate --checkpoint runs/first --data stores/shop --grouping released-faulty --json as_published.json
  fashionbert evaluate --checkpoint runs/queries --data stores/shop --protocol queries --json queries.json
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
        choices=(*PROTOCOLS, QUERIES),
        default="fashionbert",
        help="candidates: 101 of a sub-category, or every product; queries: vectors of what shoppers asked for against "
        "those of every product (default: %(default)s)",
    )
    add("--json", type=Path, metavar="FILE", help="write the figures here (default: only the table)")
    add("--split", choices=SPLITS, default="validation", help="rows to evaluate (default: %(default)s)")
    add("--queries", type=int, metavar="N", help=f"queries (default: {DEFAULT_QUERIES} for fashionbert, else all)")
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
        help="released-faulty: the released evaluator's fault, to compare with published tables (default: %(default)s)",
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
    from rich.console import Console

    if args.protocol == QUERIES:
        return _run_queries(args)
    from fashionbert_fast.evaluation import checkpoint
    from fashionbert_fast.evaluation.table import table

    result = checkpoint.evaluate_checkpoint(
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


def _run_queries(args: argparse.Namespace) -> int:
    if args.grouping != "correct":
        raise InputError(f"--grouping {args.grouping}: exists only under protocol 'fashionbert'; leave it out")
    from rich.console import Console

    from fashionbert_fast.evaluation import queries

    result = queries.evaluate_queries(
        args.checkpoint, args.data, split=args.split, queries=args.queries, seed=args.seed,
        batch_size=args.batch_size, device=args.device, precision=args.precision,
    )  # fmt: skip
    Console().print(queries.table(result))
    if args.json is not None:
        write_json(args.json, result)
    return 0
