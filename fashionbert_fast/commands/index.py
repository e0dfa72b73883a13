"""`fashionbert index`: vectors in, an index out, or points of a collection in Qdrant."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fashionbert_fast.errors import InputError
from fashionbert_fast.retrieval import KINDS

if TYPE_CHECKING:
    from rich.table import Table

EPILOG = """examples:
  fashionbert index vectors/shop --out indices/shop
  fashionbert index vectors/shop --out indices/shop --kind hnsw --overwrite
  fashionbert index vectors/shop --to qdrant --url http://localhost:6333 --collection shop   # a key: QDRANT_API_KEY

kinds: flat compares every vector (auto: up to 50,000), hnsw walks a graph of neighbours (up to a million), ivf looks
into the nearest of some thousand cells (beyond). The last two look as widely as a recall@10 of 0.99 against flat takes,
which is measured, shown and kept in INDEX/index.json. INDEX is complete by itself, but for the model and the photos,
which it names. `fashionbert search INDEX` comes next."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    # fmt: off
    add = parser.add_argument
    add("vectors", type=Path, metavar="VECTORS", help="a directory that `fashionbert embed` wrote")
    add("--out", type=Path, metavar="INDEX", help="the directory to write")
    add("--kind", choices=("auto", *KINDS), default="auto", help="of the index (default: by the number of vectors)")
    add("--overwrite", action="store_true", help="replace INDEX if it is an index")
    engine = parser.add_argument_group("an engine of its own, where a catalogue outgrows one machine")
    engine.add_argument("--to", choices=("qdrant",), help="write the vectors to this engine")
    engine.add_argument("--url", default="http://localhost:6333", metavar="URL",
        help="where it runs, or a folder for its local mode (default: %(default)s)")
    engine.add_argument("--collection", metavar="NAME", help="the collection, which is made where it is not there")
    # fmt: on


def run(args: argparse.Namespace) -> int:
    if args.out is None and args.to is None:
        raise InputError("nowhere to write to; give --out INDEX, or --to qdrant")
    if args.to and not args.collection:
        raise InputError("--to qdrant: which collection? give --collection NAME")
    from rich.console import Console

    if args.out is not None:
        from fashionbert_fast.retrieval.index import build_index

        Console().print(table(args.out, build_index(args.vectors, args.out, kind=args.kind, overwrite=args.overwrite)))
    if args.to:
        from fashionbert_fast.retrieval.engines import to_qdrant

        written, there = to_qdrant(args.vectors, args.url, args.collection)
        print(f"{args.url}: collection {args.collection}: {written} products written, {there} were there")
    return 0


def table(out: Path, manifest: Mapping[str, Any]) -> Table:
    """What was built, as a table of two columns."""
    from rich.table import Table
    from rich.text import Text

    kind, effort, recall = manifest["kind"], manifest["effort"], manifest["recall"]
    looks = {"flat": "every vector is compared", "hnsw": f"{effort} candidates a query",
             "ivf": f"{effort} of {manifest['shapes'].get('centroids', [0])[0]} cells a query"}[kind]  # fmt: skip
    shown = Table(title=f"{out}: {manifest['rows']} products", show_header=False, title_justify="left")
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(overflow="fold")
    for name, value in (
        ("kind", f"{kind}, {looks}; built in {manifest['build_seconds']:.1f} s"),
        ("vectors", f"{manifest['dims']} numbers, of {manifest['of']}, from {manifest['vectors']['path']}"),
        ("model", manifest["model"]["path"]),
        ("recall@10", f"{recall['recall@10']:.4f} on {recall['queries']} {recall['of']}"),
    ):
        shown.add_row(name, Text(value))
    return shown
