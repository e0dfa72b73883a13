"""`fashionbert prepare`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from fashionbert_fast.catalogue.read import COLUMNS, FORMATS
from fashionbert_fast.catalogue.splits import SPLIT_BY
from fashionbert_fast.errors import InputError
from fashionbert_fast.features.photo import MOST_PIXELS
from fashionbert_fast.features.prepare import DEFAULT_ENCODER, prepare
from fashionbert_fast.files import check_writable, write_json

EPILOG = """examples:
  fashionbert prepare fashion-product-images-small --out stores/mine
  fashionbert prepare fashion-product-images-small --out stores/mine --encoder efficientnet-lite0   # offline, CPU
  fashionbert prepare shop.csv --images photos --column title=name --column image=file --out stores/shop
  fashionbert prepare excel.csv --delimiter ";" --encoding cp1252 --out stores/shop
  fashionbert prepare shop.parquet --out stores/shop --encoder ./my-resnet --holdout 0 --device cuda
  fashionbert prepare shop.csv --queries clicks.csv --out stores/shop          # what shoppers typed: query, id

catalogues: a directory with styles.csv and images/<id>.jpg (Kaggle "fashion product images"), or a .csv, .tsv,
.jsonl or .parquet file with columns id, title, category, subcategory, image (a path), split and group (what several
rows of one product share: --column group=productID); only id and title must be there.
Queries are a column query, a row each (rows of one id are then one product), or the pairs of --queries; a product has
any number of them, a query any number of products.
Without an image column the photo of a product is images/<id>.jpg (or .png, .webp) beside the file, or in --images.

encoders: resnet50 (microsoft/resnet-50 of the Hugging Face hub, 2048-d); any vision backbone of transformers, as a hub
id or a local directory; efficientnet-lite0 (ImageNet-trained, 1280-d, from ordinary packages, no hub needed);
random[:SEED[:WIDTH]] (a small ResNet that is NOT trained).

The hold-out and the test split keep together what would leak: rows of one group, of one title or of one photo, and
rows that hang together through others (--split-by). A split column is respected; what leaks is counted either way.

What cannot be used is left out and listed in STORE/problems.jsonl; with --strict the first such row stops the job."""


def parse_columns(pairs: Sequence[str]) -> dict[str, str]:
    """["title=name"] -> {"title": "name"}. InputError on anything else."""
    columns = {}
    for pair in pairs:
        name, equals, column = pair.partition("=")
        if not equals:
            raise InputError(f"--column {pair}: write FIELD=COLUMN with one of {', '.join(COLUMNS)}, say title=name")
        columns[name.strip()] = column.strip()
    return columns


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    # fmt: off
    add = parser.add_argument
    add("source", type=Path, metavar="SOURCE", help=FORMATS)
    add("--out", required=True, type=Path, metavar="STORE", help="the feature store to write, a directory")
    add("--encoder", default=DEFAULT_ENCODER, metavar="NAME",
        help="resnet50, efficientnet-lite0, random[:SEED[:WIDTH]], a hub id or a directory (default: %(default)s)")
    add("--grid", type=int, default=8, metavar="N", help="cut photos into N x N patches (default: %(default)s)")
    add("--patching", default="separate", metavar="HOW",
        help="separate: each patch is a photo of its own for the encoder, as in the paper; map: the encoder, a CNN, "
        "sees the photo once, and the places of its last feature map are the patches: faster; hypercolumns: those of "
        "every stage's map and the colours, side by side: more to learn from (default: %(default)s)")
    add("--patch-pixels", type=int, metavar="N",
        help="side of a patch as the encoder sees it (default: 64 for a CNN, a transformer's own input size, 28 for "
        "random; at 32 nearly all features of efficientnet-lite0 are zero); with --patching map the encoder's stride")
    add("--views", type=int, default=1, metavar="N",
        help="encode so many views of each photo: as it is, and parts of it, mirrored or not, which only training sees "
        "(default: %(default)s)")
    add("--images", type=Path, metavar="DIR", help="folder of the photos (default: beside the catalogue)")
    add("--queries", type=Path, metavar="FILE",
        help="a .csv, .tsv, .jsonl or .parquet of queries and the ids of products they found, in UTF-8")
    add("--allow-root", action="append", default=[], type=Path, metavar="DIR",
        help="photos may lie in this folder as well; a catalogue that names others is not believed; repeatable")
    add("--max-megapixels", type=float, default=MOST_PIXELS / 1e6, metavar="N",
        help="leave out photos of more (default: %(default)g)")
    add("--column", action="append", default=[], metavar="FIELD=COLUMN",
        help=f"the catalogue's name for one of {', '.join(COLUMNS)}; FIELD= ignores it; repeatable")
    add("--delimiter", metavar="CHARACTER",
        help="between the columns of a .csv, a character or tab (default: comma, semicolon, tab or |, by the header)")
    add("--encoding", metavar="NAME",
        help="of a .csv or .jsonl, say cp1252 or latin-1 (default: by its byte order mark, else utf-8)")
    add("--holdout", type=float, default=0.1, metavar="SHARE",
        help="share of the products for validation, unless the catalogue has a split column (default: %(default)s)")
    add("--test", type=float, default=0.0, metavar="SHARE",
        help="share of the products for the split test, likewise; it takes none from validation (default: %(default)s)")
    add("--seed", type=int, default=0, help="which products are held out (default: %(default)s)")
    add("--split-by", default=SPLIT_BY, metavar="WHAT",
        help="rows that share one of these land in the same split, some of group,title,photo, or none "
        "(default: %(default)s)")
    add("--strict", action="store_true", help="stop at the first row or photo that cannot be used")
    add("--dtype", default="bfloat16", help="bfloat16, float16 or float32 features (default: %(default)s)")
    add("--batch-size", type=int, metavar="N", help="photos of a forward pass (default: what suits the device)")
    add("--workers", type=int, metavar="N", help="threads that read and, on a CPU, encode (default: one a core)")
    add("--device", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    add("--overwrite", action="store_true", help="replace STORE if it is a feature store")
    add("--json", type=Path, metavar="FILE", help="write the summary there as JSON")
    # fmt: on


def leak_line(leaks: Mapping[str, Mapping[str, int]]) -> str:
    """What of the held-out splits stands in training too, in one line."""
    leaking = {name: counts for name, counts in leaks.items() if counts["products"]}
    if not leaking:
        return "leaks: none" if leaks else "leaks: none (nothing is held out)"
    parts = (
        f"{counts['products']} of {name} also stand in train ("
        + ", ".join(f"{counts[kind]} by {kind}" for kind in ("title", "photo", "group") if counts[kind]) + ")"
        for name, counts in leaking.items()
    )  # fmt: skip
    return f"leaks: {'; '.join(parts)}"


def run(args: argparse.Namespace) -> int:
    if args.json is not None:
        check_writable(args.json)
    report = prepare(
        args.source, args.out, encoder=args.encoder, grid=args.grid, patch_pixels=args.patch_pixels,
        patching=args.patching, views=args.views, holdout=args.holdout, test=args.test, seed=args.seed,
        split_by=args.split_by, images=args.images, queries=args.queries, columns=parse_columns(args.column),
        delimiter=args.delimiter, encoding=args.encoding, strict=args.strict, dtype=args.dtype,
        batch_size=args.batch_size, workers=args.workers, device=args.device, overwrite=args.overwrite,
        roots=args.allow_root, most_pixels=round(args.max_megapixels * 1e6),
    )  # fmt: skip
    splits = ", ".join(f"{count} {name}" for name, count in report.splits.items())
    print(f"{report.store}: {report.products} products ({splits}), {args.grid} x {args.grid} patches of "
          f"{report.feature_size} features by {report.encoder}{'' if report.trained else ' (NOT TRAINED)'}, "
          f"{report.seconds:.1f} s, {report.images_per_second:.1f} images/s")  # fmt: skip
    print(leak_line(report.leaks))
    if report.queries:
        print(f"queries: {report.queries} pairs of a query and a product")
    if report.skipped:
        kinds = ", ".join(f"{kind} {count}" for kind, count in report.problems.items())
        print(f"skipped {report.skipped}: {kinds}; each is named in {args.out / 'problems.jsonl'}")
    if args.json is not None:
        write_json(args.json, asdict(report))
    return 0
