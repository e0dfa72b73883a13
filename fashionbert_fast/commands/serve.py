"""`fashionbert serve`: a local page to search an index."""

from __future__ import annotations

import argparse
import contextlib

from fashionbert_fast.commands.search import add_model_arguments
from fashionbert_fast.errors import InputError

EPILOG = """examples:
  fashionbert serve indices/shop                          # then open http://127.0.0.1:8000
  fashionbert serve indices/shop --port 0 --precision bf16
  curl 'http://127.0.0.1:8000/search?text=red+shirt&top=5&rerank=1'
  curl --data-binary @photo.jpg 'http://127.0.0.1:8000/search?category=Apparel'

Type words, or drop a photo. It is meant for one machine and its user: there is no password and no encryption, so on
another --host than 127.0.0.1 whoever reaches the port sees all products and their photos. Ctrl-C ends it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add_model_arguments(parser)
    # fmt: off
    add = parser.add_argument
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default: %(default)s, this machine)")
    add("--port", type=int, default=8000, metavar="N", help="0: any that is free (default: %(default)s)")
    # fmt: on


def run(args: argparse.Namespace) -> int:
    from fashionbert_fast.retrieval import optional

    for package in ("starlette", "uvicorn"):
        optional(package)
    from fashionbert_fast.retrieval.search import Searcher
    from fashionbert_fast.retrieval.serve import is_loopback, listen, serve, url_of

    with listen(args.host, args.port) as listening:
        searcher = Searcher.open(
            args.index, checkpoint=args.checkpoint, data=args.data, encoder=args.encoder, device=args.device,
            precision=args.precision,
        )  # fmt: skip
        try:
            searcher.warm_up()
        except InputError as error:
            print(f"WARNING: words alone can be searched for, no photos: {error}", flush=True)
        if not is_loopback(listening):
            print(f"WARNING: {args.host} is reached from other machines: whoever does sees all products and photos, "
                  "without a password", flush=True)  # fmt: skip
        line = f"{url_of(listening)}: {len(searcher.index):,} products; Ctrl-C ends it"
        with contextlib.suppress(KeyboardInterrupt):  # raised anew by uvicorn once it has ended in order
            serve(searcher, listening, args.host, lambda: print(line, flush=True))
        print("ended", flush=True)
    return 0
