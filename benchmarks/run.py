"""`fashionbert bench`."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

from fashionbert_fast.errors import InputError
from fashionbert_fast.operators import OPERATORS

EPILOG = """examples:
  fashionbert bench ops --json ops.json
  fashionbert bench ops --quick --only patch_kld masked_patch_embed
  fashionbert bench step --json step.json --store stores/shop    # whole steps beside Hugging Face's, compiled and not
  fashionbert bench step --only b ladder                         # one peer, and each of our techniques off in turn
  fashionbert bench save --json save.json                        # how long training waits for a checkpoint
  fashionbert bench search --json search.json                    # a query's time over 5,000 products, an index's recall
  fashionbert bench search --index indices/shop                  # of your own index, by its own model
  fashionbert bench evaluate --json evaluate.json                # 1,000 queries; pairs beside a Hugging Face loop
  fashionbert bench contrastive                                  # what the contrastive loss costs a step
  fashionbert bench solve --json solve.json

Results are checked for equality before anything is timed; ratios are medians over alternating pairs. With --json a
picture of the ratios is written beside FILE, with the suffix .png."""

OPS = {operator.name: f"benchmarks.ops.bench_{operator.name}" for operator in OPERATORS}
OPS["weighted_step"] = "benchmarks.steps.bench_weighted_step"
SUITES: dict[str, dict[str, str]] = {  # suite -> measurement -> module
    "ops": OPS,
    "step": {"step": "benchmarks.steps.bench_step"},
    "contrastive": {"contrastive": "benchmarks.steps.bench_contrastive"},
    "save": {"save": "benchmarks.services.bench_save"},
    "search": {"search": "benchmarks.services.bench_search"},
    "evaluate": {"evaluate": "benchmarks.services.bench_evaluate"},
    "solve": {name: OPS[name] for name in ("adaptive_loss", "min_norm_weights", "task_gradients", "weighted_step")},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument(
        "suite", nargs="?", default="ops", choices=SUITES, help="which measurements (default: %(default)s)"
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write the rows as JSON, and beside it a picture of them (suffix .png)",
    )
    parser.add_argument("--quick", action="store_true", help="fewer repetitions: minutes on two cores")
    parser.add_argument(
        "--only", nargs="+", default=(), metavar="NAME",
        help="of ops and solve: operators, as patch_kld; of step: peers, of a-float32 a-bf16 b c d d-compiled, each "
        "of the last four with -weights, zero-1 zero-2 ladder",
    )  # fmt: skip
    step = parser.add_argument_group("step")
    step.add_argument("--size", choices=("base", "large"), default="base", help="BERT's (default: %(default)s)")
    step.add_argument(
        "--store", type=Path, metavar="DIR", help="a feature store: measure on its titles' lengths as well"
    )
    search = parser.add_argument_group("search")
    search.add_argument("--index", type=Path, metavar="INDEX", help="ask this index, of `fashionbert index`")


def _picture(json_path: Path) -> Path:
    if json_path.suffix == ".png":
        raise InputError(f"{json_path}: the picture is written under that name; end the JSON's in .json")
    return json_path.with_suffix(".png")


def _print(result: dict) -> None:
    """A table a case."""
    from itertools import groupby

    from rich.console import Console
    from rich.table import Table

    from benchmarks.measure import shown

    console = Console()
    console.print(f"{result['device']}, commit {result['commit']}")
    for case, rows in groupby(result["rows"], key=lambda row: row["case"]):
        table = Table("peer", "ours", "peer's", "ratio", "p20-p80", "target", title=case, title_justify="left")
        for row in rows:
            if "peer" not in row:
                table.add_row("", shown(row["value"], row["unit"]))
                continue
            table.add_row(
                row["peer"], shown(row["value"], row["unit"]), shown(row["peer_value"], row["unit"]),
                f"{row['ratio']:.2f}x", f"{row['spread'][0]:.2f}-{row['spread'][1]:.2f}",
                f"{row['target']:.3g}x {'met' if row['met'] else 'MISSED'}",
            )  # fmt: skip
        console.print(table)


def parts(suite: str, quick: bool, only: Sequence[str] = (), **options) -> dict[str, Callable]:
    """Name -> what gives its rows on a device, of the measurements of a suite that ``only`` leaves.

    options: of the suite `step` what `bench_step.rows` takes. InputError for a name that the suite has not.
    """
    modules = SUITES[suite]
    known = list(modules)
    if suite == "step":
        from benchmarks.steps.bench_step import TARGETS

        known, options["only"] = [*TARGETS, "ladder"], tuple(only)
    for name in only:
        if name not in known:
            raise InputError(f"--only {name}: {suite} has no such measurement; it has {', '.join(known)}")
    chosen = modules if suite == "step" or not only else {name: modules[name] for name in only}
    return {
        name: lambda device, module=module: importlib.import_module(module).rows(device, quick, **options)
        for name, module in chosen.items()
    }


def write(path: Path, rows: list, proofs: list[dict], device) -> dict:
    """The rows as JSON, and a picture of them beside it; returns what the JSON holds."""
    from benchmarks.measure import report
    from benchmarks.plot import plot_rows
    from fashionbert_fast.files import write_json

    result = report(rows, device) | ({"proofs": proofs} if proofs else {})
    write_json(path, result)
    if rows:
        plot_rows(result, _picture(path))
    return result


def run(args: argparse.Namespace) -> int:
    import torch

    from benchmarks.measure import measure_parts, report
    from fashionbert_fast.engine.speed.memory import keep_freed_memory
    from fashionbert_fast.files import check_writable

    if args.json:
        check_writable(args.json)
        check_writable(_picture(args.json))
    own = {"step": {"size": args.size, "store": args.store}, "search": {"index": args.index}}
    options = own.get(args.suite, {})
    measurements = parts(args.suite, args.quick, args.only, **options)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_freed_memory()  # as training does: or page faults would be timed, of the peer that allocates most
    keep = (lambda rows, failed: write(args.json, rows, failed, device)) if args.json else lambda *_: None
    rows, failed = measure_parts(measurements, device, keep)
    _print(report(rows, device))
    if args.json:
        print(f"{args.json} and {_picture(args.json)} written")
    return 1 if failed else 0
