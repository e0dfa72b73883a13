"""`fashionbert demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

EPILOG = """examples:
  fashionbert demo --out demo_out
  fashionbert demo --out demo_out --seed 1 --overwrite
  fashionbert demo --out demo_out train.steps=3000 weighting.method=min_norm
  fashionbert demo --out demo_out --shoppers          # goes on with what shoppers ask for

Leaves in DIR: catalogue/ (drawn photos and styles.csv), store/, run/ (checkpoints, metrics.jsonl, curves),
evaluation.json, queries.png and report.html; with --shoppers also queries-run/ and queries.json, with how well queries
find their items before and after."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where everything goes")
    parser.add_argument("--products", type=int, default=3648, help="products to draw (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=300, help="held-out queries to rank (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the drawing, the training and the evaluation (default: %(default)s)"
    )
    parser.add_argument(
        "--shoppers", action="store_true", help="draw what shoppers ask for as well, and go on with it from the run"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier demo in DIR")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="change the run's configuration")


def run(args: argparse.Namespace) -> int:
    from fashionbert_fast.demo.run import run_demo

    run_demo(
        args.out, products=args.products, queries=args.queries, seed=args.seed, overwrite=args.overwrite,
        overrides=args.overrides, shoppers=args.shoppers,
    )  # fmt: skip
    return 0
