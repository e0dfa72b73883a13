"""`fashionbert embed`: a checkpoint and a feature store in, a vector a product out."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from fashionbert_fast.errors import InputError
from fashionbert_fast.retrieval import OF

EPILOG = """examples:
  fashionbert embed --checkpoint runs/shop --data stores/shop --out vectors/shop
  fashionbert embed --checkpoint runs/shop --data stores/shop --of image --out vectors/photos
  fashionbert embed --checkpoint runs/shop --data stores/shop --precision bf16 --dtype float16 --out vectors/shop
  torchrun --nproc-per-node 8 -m fashionbert_fast embed --checkpoint runs/shop --data stores/shop --out vectors/shop

VECTORS holds vectors.npy (a line a product, of length 1: their dot product is the cosine), products.parquet (id, title,
category, subcategory, image, row) and vectors.json (what made them, hashes). Equal titles and photos are embedded once.
`fashionbert index VECTORS` comes next."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    # fmt: off
    add = parser.add_argument
    add("--checkpoint", required=True, type=Path, metavar="DIR", help="a run, a checkpoint or a model directory")
    add("--data", required=True, type=Path, metavar="STORE", help="feature store written by `fashionbert prepare`")
    add("--out", required=True, type=Path, metavar="VECTORS", help="the directory to write")
    add("--of", choices=OF, default="both",
        help="of a product's title, its photo, or both in one sequence (default: %(default)s)")
    add("--split", choices=("all", "train", "validation", "test"), default="all",
        help="products to embed (default: %(default)s)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of the model (default: %(default)s)")
    add("--dtype", choices=("float32", "float16"), default="float32",
        help="of vectors.npy; float16 takes half the disk (default: %(default)s)")
    add("--batch-size", type=int, metavar="B",
        help="of a forward pass (default: 128); another moves vectors by float noise")
    add("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    add("--overwrite", action="store_true", help="replace VECTORS if it holds vectors")
    # fmt: on


def run(args: argparse.Namespace) -> int:
    if args.batch_size is not None and args.batch_size < 1:
        raise InputError(f"--batch-size: {args.batch_size} is no batch size; give 1 or more")
    from fashionbert_fast.distributed import host_ranks, is_main
    from fashionbert_fast.retrieval.embed import embed_store

    start = time.perf_counter()
    with host_ranks():
        written = embed_store(
            args.checkpoint, args.data, args.out, of=args.of, split=args.split, precision=args.precision,
            dtype=args.dtype, device=args.device, batch_size=args.batch_size, overwrite=args.overwrite,
        )  # fmt: skip
        if not is_main():
            return 0
    what = {"both": "titles with their photos", "text": "titles", "image": "photos"}[args.of]
    print(f"{args.out}: {written['rows']} vectors of {written['dims']} numbers, {what}, by {written['model']['path']}, "
          f"{time.perf_counter() - start:.1f} s")  # fmt: skip
    return 0
