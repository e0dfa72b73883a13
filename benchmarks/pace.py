"""Is this tree as fast as another commit's? The guard of every change that is not to cost speed.

    python -m benchmarks.pace COMMIT --json pace.json          # `make pace COMMIT=...`; exit status 0: yes, 1: no

Both trees run each part in turn, by their own copy of it and with their own libraries: an operator's measurement, the
whole step, the demo. A row's ratio is the median over rounds of how many times faster (or smaller) this tree is; below
`TARGET` it is slower than a quiet machine's noise explains.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.measure import Row
from benchmarks.run import write
from benchmarks.same import checkout, full_name
from benchmarks.tree import ROOT, environment
from fashionbert_fast.errors import InputError
from fashionbert_fast.files import check_writable
from fashionbert_fast.operators import OPERATORS
from fashionbert_fast.progress import progress

TARGET = 0.95
PARTS = {operator.name: ("bench", "ops", "--quick", "--only", operator.name) for operator in OPERATORS} | {
    "step": ("bench", "step", "--quick", "--only", "c"),
    "demo": ("demo",),
}
LESS_IS_BETTER = ("us", "MiB", "s")


def measure(tree: Path, part: str) -> dict[tuple[str, str], float]:
    """(case, unit) -> this tree's own figures of one run, the median where a case has several peers."""
    with tempfile.TemporaryDirectory(prefix="pace-") as directory:
        rows = Path(directory) / "rows.json"
        output = ("--out", f"{directory}/demo") if part == "demo" else ("--json", str(rows))
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "fashionbert_fast", *PARTS[part], *output], cwd=tree, env=environment(tree),
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise InputError(f"{tree}: {part}: {done.stdout[-1500:]}{done.stderr[-2500:]}")
        if part == "demo":
            return {("demo", "s"): time.perf_counter() - start}
        found = defaultdict(list)
        for row in json.loads(rows.read_text())["rows"]:
            if row.get("peer", "itself") != "itself":  # which older rows name where there is no peer
                found[row["case"], row["unit"]].append(row["value"])
    return {key: statistics.median(values) for key, values in found.items()}


def rows_of(rounds: Sequence[tuple[dict, dict]], peer: str) -> list[Row]:
    """A row for each case that both trees measured in every round of (ours, theirs)."""
    rows = []
    for key in rounds[0][0]:
        if not all(key in figures for pair in rounds for figures in pair):
            continue
        case, unit = key
        pairs = [(ours[key], theirs[key]) for ours, theirs in rounds]
        ratios = sorted(b / a if unit in LESS_IS_BETTER else a / b for a, b in pairs)
        ratio = statistics.median(ratios)
        ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        rows.append(Row(case, peer, ours, theirs, unit, ratio, TARGET, ratio >= TARGET, [ratios[0], ratios[-1]]))
    return rows


def compare(tree: Path, parts: Iterable[str], rounds: int, peer: str, keep) -> list[Row]:
    """The rows of all parts against the tree; ``keep`` is called with what there is after each of them."""
    import torch

    rows: list[Row] = []
    parts = list(parts)
    for part in progress(parts, total=len(parts), description="parts"):
        pairs = []
        for number in range(rounds):  # who is first changes, so that neither is always the one after a pause
            figures = {one: measure(one, part) for one in ((ROOT, tree) if number % 2 else (tree, ROOT))}
            pairs.append((figures[ROOT], figures[tree]))
        rows += rows_of(pairs, peer)
        keep(rows, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    description, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pace", description=description, epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("commit", help="what to compare with")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART",
                        help=f"of {', '.join(PARTS)} (default: all)")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5, help="runs of each tree a part (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as JSON, and beside it a picture")
    args = parser.parse_args(argv)
    keep = (lambda rows, device: write(args.json, rows, [], device)) if args.json else lambda *_: None
    try:
        if args.json:
            check_writable(args.json)
        commit = full_name(args.commit)
        with tempfile.TemporaryDirectory(prefix="pace-") as directory:
            tree = Path(directory) / "tree"
            checkout(commit, tree)
            rows = compare(tree, args.only, args.rounds, f"commit {commit[:12]}", keep)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    for row in rows:
        spread = f"{row.spread[0]:.2f}-{row.spread[1]:.2f}"
        print(f"{'' if row.met else 'SLOWER':8}{row.ratio:.2f}x ({spread})  {row.case}")
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
