"""`fashionbert inspect`: what is in a feature store, whether it is whole, whether it agrees with another."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fashionbert_fast.errors import InputError
from fashionbert_fast.files import check_writable, write_json

if TYPE_CHECKING:
    from rich.table import Table

EPILOG = """examples:
  fashionbert inspect stores/shop                                    # figures, and the picture sheet shop.png here
  fashionbert inspect stores/shop --out sheet.png --samples 60 --json shop.json
  fashionbert inspect stores/shop --tokenizer runs/shop/tokenizer    # lengths of titles in tokens, too
  fashionbert inspect stores/shop --verify                           # every row against its checksum
  fashionbert inspect stores/shop --compare /mnt/other/stores/shop   # do two machines' features agree?

The sheet shows products as the encoder sees them; twins (rows of one group, title or photo) are framed. With --verify
or --compare it is drawn only where --out names it. The exit status is 2 where rows are damaged or stores disagree."""
LISTED = 20  # damaged rows on the terminal; --json has all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    # fmt: off
    add = parser.add_argument
    add("store", type=Path, metavar="STORE", help="a feature store, as `fashionbert prepare` writes it")
    add("--verify", action="store_true", help="read the whole store and name every row that is not as it was written")
    add("--compare", type=Path, metavar="STORE_B", help="compare the features of all rows that both stores have")
    add("--out", type=Path, metavar="FILE", help="the picture sheet, a PNG (default: STORE's name here, .png)")
    add("--samples", type=int, default=24, metavar="N", help="products on the sheet (default: %(default)s)")
    add("--tokenizer", type=Path, metavar="DIR", help="a directory with vocab.txt or tokenizer.json")
    add("--json", type=Path, metavar="FILE", help="write everything there as JSON")
    # fmt: on


def run(args: argparse.Namespace) -> int:
    if args.samples < 1:
        raise InputError(f"--samples {args.samples}: must be 1 or more")
    sheet = args.out
    if sheet is None and not (args.verify or args.compare):
        sheet = Path(f"{args.store.resolve().name}.png")
    for file in (sheet, args.json):
        if file is not None:
            check_writable(file)
    from rich.console import Console

    from fashionbert_fast.features.compare import compare
    from fashionbert_fast.features.statistics import describe
    from fashionbert_fast.features.store import FeatureStore

    store = FeatureStore.open(args.store, check_rows=not args.verify)
    other = FeatureStore.open(args.compare) if args.compare else None
    report = describe(store, _tokenizer(args.tokenizer))
    if args.verify:
        report["verify"] = {"hashes": store.crc32_N is not None, "damages": [asdict(d) for d in store.verify()]}
    if other is not None:
        report["compare"] = compare(store, other)
    if sheet is not None:
        from fashionbert_fast.features.sheet import write_sheet

        report["sheet"] = {"file": str(sheet), **write_sheet(store, sheet, args.samples)}
    if args.json is not None:
        write_json(args.json, report)
    Console().print(table(report))
    _judge(report)
    return 0


def _tokenizer(directory: Path | None) -> Any:
    if directory is None:
        return None
    from fashionbert_fast.data.tokenizer import load_tokenizer

    return load_tokenizer(directory)


def _judge(report: Mapping[str, Any]) -> None:
    """InputError where rows are damaged or stores disagree: the exit status says it to a script."""
    damages = report.get("verify", {}).get("damages", [])
    if damages:
        raise InputError(f"{report['store']}: {len(damages)} of {report['products']} rows or files are not as they "
                         "were written; prepare the store again with --overwrite")  # fmt: skip
    compared = report.get("compare")
    if compared and not compared["agree"]:
        raise InputError(f"{' and '.join(compared['stores'])}: {compared['beyond_tolerance']} of {compared['common']} "
                         f"common rows have features more than {compared['tolerance']:.0%} apart; do not mix them: "
                         "prepare both on one machine, or with the same libraries")  # fmt: skip


def table(report: Mapping[str, Any]) -> Table:
    """The report as a table of two columns."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=f"{report['store']}: {report['products']} products", show_header=False, title_justify="left")
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(overflow="fold")
    for name, value in _lines(report):
        shown.add_row(name, Text(value))  # titles may hold what looks like markup
    return shown


def _lines(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    encoder, features, twins = report["encoder"], report["features"], report["twins"]
    trained = "" if encoder.get("trained", True) else " (NOT TRAINED)"
    of_map = {"map": "'s feature map", "hypercolumns": "'s feature maps"}.get(report["patching"], "")
    sizes = ", ".join(f"{count} of {size}" for size, count in twins["sizes"].items())
    shares = ", ".join(f"{count} a {kind}" for kind, count in twins["products_that_share"].items())
    lines = [
        ("features", f"{report['grid']} x {report['grid']} patches of {report['feature_size']}, {report['dtype']}, by "
                     f"{encoder['name']}{trained}{of_map}, computed in {encoder.get('computed_in', 'unknown')}"
                     + (f", {report['views']} views of each photo" if report["views"] > 1 else "")),
        ("made from", f"{report['source'] or 'unknown'}, {report['created'] or 'unknown'}"),
        ("splits", _counts(report["splits"]) + (f"; kept together by {report['split_by']}" * bool(report["split_by"]))),
        *((f"leaks of {name}", _leaks(counts)) for name, counts in report["leaks"].items()),
        ("twins", f"{twins['products']} products in {twins['sets']} sets ({sizes}); sharing {shares}; the largest: "
                  f"{twins['largest']['size']} like id {twins['largest']['id']}, {twins['largest']['title']}"
                  if twins["sets"] else "none"),
        ("categories", _counts(report["categories"], 8) + f"; {report['subcategories']} sub-categories"),
        *((f"queries of {name or '(none)'}", _queries(counts)) for name, counts in report["queries"].items()),
        *((f"{unit} a title", _spread(values)) for unit, values in report["titles"].items()),
        (f"values of {features['rows']} rows", f"mean {features['mean']:.4g}, deviation {features['std']:.4g}, "
         f"{features['zeros']:.1%} zeros, {features['non_finite']} not finite, "
         f"{features['constant_dimensions']} of {report['feature_size']} dimensions constant"),
        ("left out", _counts(report["problems"]) or "nothing"),
        ("content", report["content_sha256"] or "carries no hashes (written by an older version); prepare it again "
         "to have damage found"),
    ]  # fmt: skip
    return lines + _results(report)


def _results(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What --verify, --compare and the sheet add."""
    lines = []
    if "verify" in report:
        damages = [f"{damage['file']}: {_place(damage)}{damage['what']}" for damage in report["verify"]["damages"]]
        more = [f"and {len(damages) - LISTED} more; --json FILE lists all"] if len(damages) > LISTED else []
        passed = "every row is as it was written" if report["verify"]["hashes"] else "no hashes; all values are finite"
        lines.append(("verify", "\n".join(damages[:LISTED] + more) or passed))
    if "compare" in report:
        lines.append(("compare", _comparison(report["compare"])))
    if "sheet" in report:
        sheet = report["sheet"]
        lines.append(("sheet", f"{sheet['file']}: photos: {sheet['shown']} as encoded, {sheet['missing']} not here or "
                               f"unreadable, {sheet['changed']} changed since"))  # fmt: skip
    return lines


def _comparison(found: Mapping[str, Any]) -> str:
    numbers = "values that are not numbers" if found["largest"] is None else (
        f"median {found['median']:.2%}, largest {found['largest']:.2%}")  # fmt: skip
    worst = ", ".join(f"{row['id']} ({'NaN' if row['distance'] is None else format(row['distance'], '.2%')})"
                      for row in found["worst"][:3])  # fmt: skip
    return (
        f"{found['common']} common rows ({found['only_in_first']} only here, {found['only_in_second']} only there), "
        f"computed in {' and '.join(found['computed_in'])}: {numbers} apart, {found['beyond_tolerance']} beyond the "
        f"tolerance of {found['tolerance']:.0%}; worst: {worst}; titles differ in {found['titles_differ']}, photos as "
        f"read in {found['photos_differ']}" + (f"; the encoders are {found['probe']}" if found["probe"] else "")
    )


def _place(damage: Mapping[str, Any]) -> str:
    return f"row {damage['row']} (id {damage['id']}): " if damage["row"] >= 0 else ""


def _counts(counts: Mapping[str, int], most: int = 20) -> str:
    listed = [f"{count} {name or '(none)'}" for name, count in list(counts.items())[:most]]
    return ", ".join(listed + ([f"{len(counts) - most} more"] if len(counts) > most else []))


def _leaks(counts: Mapping[str, int]) -> str:
    if not counts["products"]:
        return "none: no product shares a title, a photo or a group with training"
    kinds = ", ".join(f"{counts[kind]} by {kind}" for kind in ("title", "photo", "group"))
    return f"{counts['products']} products also stand in train ({kinds})"


def _queries(counts: Mapping[str, int]) -> str:
    known = f", {counts['also_in_train']} of them asked of training products too" if "also_in_train" in counts else ""
    return f"{counts['queries']} different ones{known}, of {counts['products']} products, {counts['pairs']} pairs"


def _spread(values: Mapping[str, float]) -> str:
    return (f"{values['min']:g} to {values['max']:g}, median {values['median']:g}, mean {values['mean']:.1f}, "
            f"95% up to {values['p95']:g}")  # fmt: skip
