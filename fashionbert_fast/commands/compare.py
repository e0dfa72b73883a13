"""`fashionbert compare`: two models that answered the same queries; which is better, and is it more than luck?"""

from __future__ import annotations

import argparse
from itertools import groupby
from pathlib import Path
from typing import Any

from fashionbert_fast.files import check_writable, write_json

EPILOG = """examples:
  fashionbert evaluate --checkpoint runs/a --data stores/shop --save-candidates lists.json --scores a.parquet
  fashionbert evaluate --checkpoint runs/b --data stores/shop --candidates-from lists.json --scores b.parquet
  fashionbert compare a.parquet b.parquet --json compared.json

Recall by McNemar's exact test, mean reciprocal rank and alignment accuracy by a permutation test, both over the same
queries; the interval of the difference by paired bootstrap. Nine tests: one in twenty is below 0.05 by luck alone."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("a", type=Path, metavar="A", help="what `evaluate --scores` wrote of one model")
    parser.add_argument("b", type=Path, metavar="B", help="and of the other, on the same candidate lists")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the comparison here as well")
    parser.add_argument("--seed", type=int, default=0, help="of the resamples (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    if args.json is not None:
        check_writable(args.json)
    from rich.console import Console

    from fashionbert_fast.evaluation.reports.comparison import compare
    from fashionbert_fast.evaluation.reports.scores import read_scores

    result = compare(read_scores(args.a), read_scores(args.b), seed=args.seed)
    Console().print(_table(result))
    if args.json is not None:
        write_json(args.json, result)
    return 0


def _table(result: dict[str, Any]):
    from rich.table import Table

    caption = f"A: {result['a']}\nB: {result['b']}"
    shown = Table(title=f"{result['queries']} queries, lists {result['lists'][:12]}", caption=caption)
    for name in ("", "A", "B", "B - A [95% interval]", "won/lost", "p"):
        shown.add_column(name, justify="right" if name else "left", no_wrap=True)
    for direction, rows in groupby(result["rows"], key=lambda row: row["direction"]):
        shown.add_section()
        if direction != "both":
            shown.add_row(direction.replace("_to_", " -> "), style="dim")
        for row in rows:
            low, high = (100 * end for end in row["interval"])
            difference = f"{100 * row['difference']:+.1f} \\[{low:.1f}, {high:.1f}]"
            p = f"{row['p']:.3f}" if row["p"] >= 0.0005 else "<0.001"
            shown.add_row(
                row["metric"].removesuffix(" accuracy"), f"{100 * row['a']:.2f}", f"{100 * row['b']:.2f}", difference,
                f"{row['better']}/{row['worse']}", p, style="bold" if row["p"] < 0.05 else None,
            )  # fmt: skip
    return shown
