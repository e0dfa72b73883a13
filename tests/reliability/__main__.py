"""What the promises of docs/reliability.md come to, k of n trials a proof:

    python -m tests.reliability --json reliability.json            # all: hours on two cores
    python -m tests.reliability --json reliability.json --quick    # a sample of each proof: minutes
    python -m tests.reliability --only kill inject --seed 7

Exit status 0: every trial of every proof succeeded; 1: one did not, or a proof had none; 2: bad input.
"""

from __future__ import annotations

import argparse
import importlib
import secrets
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from fashionbert_fast.errors import InputError
from fashionbert_fast.files import check_writable, write_json
from fashionbert_fast.progress import progress
from tests.reliability import PROOFS, workload
from tests.reliability.trial import Trial

OFTEN = 60.0  # seconds


def parser() -> argparse.ArgumentParser:
    description, _, epilog = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m tests.reliability", description=description, epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--json", type=Path, metavar="FILE", help="the scoreboard, written after every proof")
    add("--quick", action="store_true", help="a sample of each proof's trials")
    add("--only", nargs="+", default=PROOFS, metavar="NAME", help=f"of {', '.join(PROOFS)}")
    add("--seed", type=int, metavar="N", help="of every random choice; drawn, and told, where it is not given")
    add("--processes", type=int, default=2, metavar="N", help="ranks of a run, 2 to 4 (default: %(default)s)")
    add("--folder", type=Path, metavar="DIR",
        help="where trials run; those that fail stay there (default: the system's temporary folder)")  # fmt: skip
    return parser


def judge(proof: ModuleType, folder: Path, seed: int, quick: bool, keep: Callable[[dict], None]) -> dict:
    """The proof's row. A proof that breaks off has failed a trial more: those it did not come to are not met.

    keep: is handed the row so far, not met while more is to come, every `OFTEN` seconds: a run of hours may be killed.
    """
    start, found = time.monotonic(), []
    kept = start

    def row(ended: bool) -> dict:
        failed = [trial for trial in found if not trial.ok]
        return {
            "proof": proof.NAME, "k": len(found) - len(failed), "n": len(found),
            "met": ended and bool(found) and not failed, "ended": ended, "target": proof.TARGET, "seed": seed,
            "quick": quick, "processes": workload.PROCESSES, "seconds": round(time.monotonic() - start, 1),
            "failed": [f"{trial.name}: {trial.note}" for trial in failed],
            "found": [f"{trial.name}: {trial.note}" for trial in found if trial.ok and trial.note],
        }  # fmt: skip

    try:
        for trial in progress(proof.trials(folder, seed, quick), total=None, description=proof.NAME):
            found.append(trial)
            if not trial.ok:
                print(f"{proof.NAME}: {trial.name}: {trial.note}", file=sys.stderr, flush=True)
            if time.monotonic() - kept >= OFTEN:
                kept = time.monotonic()
                keep(row(False))
    except Exception as error:
        traceback.print_exc()
        found.append(Trial(proof.NAME, "the proof itself", False, f"{type(error).__name__}: {error}"))
    return row(True)


def head() -> dict:
    import torch

    from benchmarks.measure import report

    return report([], torch.device("cpu"))


def show(rows: Sequence[dict]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("proof", "k of n", "seconds", "target")
    for row in rows:
        verdict = f"{row['k']:,} of {row['n']:,}{'' if row['met'] else ' MISSED'}"
        table.add_row(row["proof"], verdict, f"{row['seconds']:,.0f}", row["target"])
    Console().print(table)


def chosen(only: Sequence[str]) -> list[ModuleType]:
    for name in only:
        if name not in PROOFS:
            raise InputError(f"--only {name}: no such proof; there are {', '.join(PROOFS)}")
    return [importlib.import_module(f"tests.reliability.{name}") for name in only]


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    proofs = chosen(args.only)
    if not 2 <= args.processes <= 4:
        raise InputError(f"--processes {args.processes}: give 2 to 4")
    if args.json:
        check_writable(args.json)
    seed = secrets.randbelow(2**31) if args.seed is None else args.seed
    workload.PROCESSES = args.processes
    if args.folder:
        args.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="reliability-", dir=args.folder))
    print(f"seed {seed}; trials run in {folder}", flush=True)
    result = head() | {"rows": []}

    def keep(row: dict) -> None:
        if args.json:
            write_json(args.json, result | {"rows": [*result["rows"], row]})
        if not sys.stderr.isatty():
            print(f"{row['proof']}: {row['k']:,} of {row['n']:,} after {row['seconds']:,.0f} s", flush=True)

    for proof in proofs:
        row = judge(proof, folder, seed, args.quick, keep)
        keep(row)
        result["rows"].append(row)
    show(result["rows"])
    if all(row["met"] for row in result["rows"]):
        shutil.rmtree(folder)
        return 0
    print(f"what failed is kept in {folder}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"python -m tests.reliability: error: {error}", file=sys.stderr)
        sys.exit(2)
