"""Every baseline and every variant of FashionBERT trained on the same products, chosen on validation, and compared on
the same lists of test products.

    fashionbert prepare CATALOGUE --out stores/map --patching map --holdout 0.1 --test 0.2
    python -m benchmarks.quality --store map=stores/map --json quality.json
    python -m benchmarks.quality --store map=stores/map --store crops=stores/crops --only small --json stores.json
    python -m benchmarks.quality --store map=stores/map --only 'no-*' --only map/small --seeds 5 --json some.json
    python -m benchmarks.quality --quick --json quick.json    # a drawn catalogue: whether it runs, not how good it is
    python -m benchmarks.quality --store map=stores/map --json quality.json --collect   # trains nothing: what is done
    python -m benchmarks.quality --json quality.json --docs   # trains nothing: tables and picture of docs/quality.md
    python -m benchmarks.quality --list

What is done is kept in WORK and not done again: the same command goes on after an interrupt, and more seeds, systems or
stores add to it. Exit status 0: all was measured; 1: some system failed, and is named; 2: bad input or an interrupt.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import report
from benchmarks.quality import page
from benchmarks.quality.report import Entry, summarised
from benchmarks.quality.runs import Job, Stock, answers_of, evaluate, machine, open_stocks, write_test_lists
from benchmarks.quality.systems import QUICK, Sizes, System, systems
from fashionbert_fast.errors import InputError
from fashionbert_fast.files import check_writable, read_json, write_json

DRAWN = 1320  # products of the quick catalogue, of whom a twentieth each is held out


def parser() -> argparse.ArgumentParser:
    description, _, epilog = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description=description, epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    # fmt: off
    add("--json", type=Path, metavar="FILE", help="write every figure, test and row here")
    add("--store", action="append", default=[], metavar="NAME=DIR",
        help="a feature store with the splits train, validation and test, and its name in the tables; repeatable")
    add("--seeds", type=int, metavar="N", help="of training, 0 to N - 1 (default: 3; --quick 1)")
    add("--only", action="append", default=[], metavar="PATTERN",
        help="systems whose NAME or STORE/NAME it matches, as a shell's; repeatable")
    add("--seconds", type=float, metavar="S", help="to fit each baseline in (default: its own number of epochs)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="FashionBERT is scored in (default: %(default)s)")
    add("--work", type=Path, metavar="DIR", help="runs and evaluations, kept to go on from (default: FILE.work)")
    add("--quick", action="store_true", help="few steps, tiny models; without --store on a drawn catalogue")
    add("--collect", action="store_true", help="train nothing: write FILE of the systems and seeds that are done")
    add("--docs", action="store_true", help="train nothing: write docs/quality.md's tables and picture from FILE")
    add("--list", action="store_true", help="print the systems and end")
    # fmt: on
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.list:
        print("\n".join(of.name for of in systems()))
        return 0
    try:
        if args.json is None:
            raise InputError("--json: give the FILE to write")
        if args.docs:
            page.write(read_json(args.json, "measure it first: leave --docs out"))
            return 0
        return run(args)
    except InputError as error:
        message = str(error)
    except KeyboardInterrupt:
        message = f"interrupted; what is done is kept in {work_of(args)}, and the same command goes on from there"
    print(f"benchmarks.quality: error: {message}", file=sys.stderr)
    return 2


def run(args: argparse.Namespace) -> int:
    """Measure what is asked for."""
    sizes = replace(QUICK if args.quick else Sizes(), precision=args.precision)
    if args.seconds is not None:
        sizes = replace(sizes, seconds=args.seconds, epochs=None)
    seeds = args.seeds if args.seeds is not None else 1 if args.quick else 3
    if seeds < 1:
        raise InputError(f"--seeds: {seeds} is too few; give 1 or more")
    check_writable(args.json)
    work = work_of(args)
    stocks = open_stocks(named_stores(args, work))
    return measure(chosen_systems(stocks, args.only), seeds, sizes, work, args.json, collect=args.collect)


def work_of(args: argparse.Namespace) -> Path:
    return args.work or args.json.with_name(f"{args.json.name}.work")


def named_stores(args: argparse.Namespace, work: Path) -> dict[str, Path]:
    """What --store names; the drawn catalogue where there is none and --quick."""
    named: dict[str, Path] = {}
    for word in args.store:
        name, equals, path = word.partition("=")
        if not equals or not name or "/" in name or name in named:
            raise InputError(f"--store {word}: write NAME=DIR, each NAME once and without a slash")
        named[name] = Path(path)
    if named:
        return named
    if not args.quick:
        raise InputError("--store: give at least one NAME=DIR, or --quick for a drawn catalogue")
    return {"drawn": drawn_store(work / "drawn")}


def drawn_store(folder: Path) -> Path:
    from fashionbert_fast.demo.garments.catalogue import write_catalogue
    from fashionbert_fast.demo.run import ENCODER
    from fashionbert_fast.features.prepare import prepare

    store = folder / "store"
    if not store.exists():
        catalogue = write_catalogue(folder / "catalogue", products=DRAWN, seed=0)
        prepare(catalogue, store, encoder=ENCODER, holdout=0.05, test=0.05, columns={"split": ""})
    return store


def chosen_systems(stocks: Sequence[Stock], patterns: Sequence[str]) -> list[tuple[Stock, System]]:
    """Those that a pattern matches, or all. InputError where a pattern matches none."""
    both = [(stock, system) for stock in stocks for system in systems()]

    def matches(pattern: str, stock: Stock, system: System) -> bool:
        return any(fnmatchcase(name, pattern) for name in (system.name, f"{stock.name}/{system.name}"))

    for pattern in patterns:
        if not any(matches(pattern, *of) for of in both):
            raise InputError(f"--only {pattern}: matches no system; --list names them")
    return [of for of in both if not patterns or any(matches(pattern, *of) for pattern in patterns)]


def measure(
    chosen: Sequence[tuple[Stock, System]], seeds: int, sizes: Sizes, work: Path, json: Path, *, collect: bool = False
) -> int:  # fmt: skip
    """All seeds of all systems, or, where ``collect``, those that are done; one that fails costs the others nothing.
    InputError where no list can be drawn."""
    lists = work / "lists.json"
    lists_hash = write_test_lists(lists, chosen[0][0].path, sizes)
    evaluated: list[list[tuple[Job, dict[str, Any]]]] = [[] for _ in chosen]
    failed: dict[str, str] = {}
    try:
        for seed in range(seeds):
            for (stock, system), done in zip(chosen, evaluated, strict=True):
                name = f"{stock.name}/{system.name}, seed {seed}"
                job = Job(stock, system, seed, sizes, work)
                if collect and not (answers_of(job, lists_hash) / "result.json").exists():
                    continue
                print(name, flush=True)
                try:
                    done.append((job, evaluate(job, lists, lists_hash)))
                except Exception as error:  # one that cannot be trained is told, and costs the others nothing
                    failed[f"{name}, ran"] = repr(error)[:2000]
                    print(f"{name}: {error}", file=sys.stderr, flush=True)
    finally:
        result = collected(evaluated, failed, sizes, seeds)
        write_json(json, result)
    print(page.tables(result))
    return 1 if failed else 0


def collected(
    evaluated: Sequence[list[tuple[Job, dict[str, Any]]]], failed: dict[str, str], sizes: Sizes, seeds: int
) -> dict[str, Any]:
    """The JSON: the contract's fields, then figures and tests, and what they rest on."""
    entries = [Entry.of([job for job, _ in of], [found for _, found in of]) for of in evaluated if of]
    results = [found["result"] for of in evaluated for _, found in of]
    asked = {name: results[0][name] if results else 0 for name in ("queries", "candidates", "lists")}
    proofs = [{"proof": name, "k": 0, "n": 1, "met": False, "error": error} for name, error in failed.items()]
    base = report([], torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    settings = asdict(sizes) | {"seeds": seeds} | asked
    found = summarised(entries, 1 / max(1, asked["candidates"]))
    return base | {"machine": machine(), "settings": settings, "failed": proofs} | found


if __name__ == "__main__":
    sys.exit(main())
