"""`fashionbert demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

EPILOG = """examples:
  fashionbert demo --out demo_out
  fashionbert demo --out demo_out --seed 1 --overwrite
  fashionbert demo --out demo_out train.steps=3000 weighting.method=min_norm

Leaves in DIR: catalogue/ (drawn photos and styles.csv), store/, run/ (checkpoints, metrics.jsonl, curves),
evaluation.json, queries.png and report.html."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where everything goes")
    parser.add_argument("--products", type=int, default=3648, help="products to draw (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=300, help="held-out queries to rank (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the drawing, the training and the evaluation (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier demo in DIR")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="change the run's configuration")


def run(args: argparse.Namespace) -> int:
    from fashionbert_fast.demo.run import run_demo

    run_demo(
        args.out, products=args.products, queries=args.queries, seed=args.seed, overwrite=args.overwrite,
        overrides=args.overrides,
    )  # fmt: skip
    return 0
