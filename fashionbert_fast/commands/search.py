"""`fashionbert search`: words or a photo in, a table and a picture sheet of products out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fashionbert_fast.errors import InputError
from fashionbert_fast.files import check_writable, write_json
from fashionbert_fast.retrieval import TOP

if TYPE_CHECKING:
    from rich.table import Table

    from fashionbert_fast.retrieval.search import Hit

EPILOG = """examples:
  fashionbert search indices/shop --text "red striped shirt"
  fashionbert search indices/shop --image photo.jpg --top 20 --out similar.png --json similar.json
  fashionbert search indices/shop --text "red striped shirt" --rerank   # the nearest 100, reordered by the joint model
  fashionbert search indices/shop --image photo.jpg --text "the same in blue" --category Apparel

The score is the cosine of the query's vector with the product's; with --rerank the probability that they match: words
are scored with each photo, a photo with each title. The photos are drawn into --out (default: search.png here)."""


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """What `search` and `serve` open an index with."""
    # fmt: off
    add = parser.add_argument
    add("index", type=Path, metavar="INDEX", help="a directory that `fashionbert index` wrote")
    add("--checkpoint", type=Path, metavar="DIR", help="where the model lies now (default: where it was)")
    add("--data", type=Path, metavar="STORE", help="where the store lies now, for reranking (default: where it was)")
    add("--encoder", metavar="DIR", help="a directory of the patch encoder, where its name does not find it")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of the model (default: %(default)s)")
    add("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    # fmt: on


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add_model_arguments(parser)
    # fmt: off
    add = parser.add_argument
    add("--text", metavar="WORDS", help="describe the product")
    add("--image", type=Path, metavar="FILE", help="a photo of it: JPEG, PNG or WebP")
    add("--rerank", action="store_true", help="put the 100 nearest in the order of the joint model")
    add("--category", metavar="NAME", help="only products of this category")
    add("--top", type=int, default=TOP, metavar="K", help="products to show (default: %(default)s)")
    add("--out", type=Path, default=Path("search.png"), metavar="FILE", help="the picture sheet (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the answer there as JSON")
    # fmt: on


def run(args: argparse.Namespace) -> int:
    if args.text is None and args.image is None:
        raise InputError("nothing to search for; give --text WORDS, --image FILE or both")
    for file in (args.out, args.json):
        if file is not None:
            check_writable(file)
    from rich.console import Console

    from fashionbert_fast.retrieval.search import Searcher, as_json
    from fashionbert_fast.retrieval.sheet import write_sheet

    searcher = Searcher.open(
        args.index, checkpoint=args.checkpoint, data=args.data, encoder=args.encoder, device=args.device,
        precision=args.precision,
    )  # fmt: skip
    hits = searcher.search(args.text, args.image, top=args.top, rerank=args.rerank, category=args.category)
    query = " + ".join(part for part in (args.text, str(args.image) if args.image else None) if part)
    Console().print(table(hits, query))
    missing = write_sheet(hits, args.out, query, args.image)
    if args.json is not None:
        asked = {"text": args.text, "image": str(args.image) if args.image else None, "category": args.category}
        write_json(args.json, {"query": asked, "index": str(args.index), "rerank": args.rerank, "hits": as_json(hits)})
    print(f"{args.out}: {len(hits)} products" + (
        f"; {missing} photos are not where they were, or cannot be read: prepare, embed and index the catalogue again "
        "where it lies now" if missing else ""))  # fmt: skip
    return 0


def table(hits: Sequence[Hit], query: str) -> Table:
    """The products, best first."""
    from rich.table import Table
    from rich.text import Text

    reranked = any(hit.probability is not None for hit in hits)
    shown = Table(title=Text(query), title_justify="left")
    for name in ("", *(("match",) if reranked else ()), "cosine"):
        shown.add_column(name, justify="right")
    for name in ("id", "title", "category"):
        shown.add_column(name, overflow="fold")
    for hit in hits:
        match = (f"{hit.probability:.1%}",) if hit.probability is not None else ()
        shown.add_row(str(hit.rank), *match, f"{hit.cosine:.3f}", *map(Text, (hit.id, hit.title, hit.category)))
    return shown
