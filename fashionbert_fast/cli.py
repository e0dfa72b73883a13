"""The command line: `fashionbert COMMAND`. Bad input is one line and exit status 2, never a traceback."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType

from fashionbert_fast import __version__
from fashionbert_fast.errors import InputError, TrainingStopped, is_first_to_tell

# command -> (module with add_arguments(parser) and run(args) -> int, one line of help)
COMMANDS = {
    "demo": ("fashionbert_fast.commands.demo", "the whole job on an embedded catalogue, on a CPU, in minutes"),
    "prepare": ("fashionbert_fast.commands.prepare", "a catalogue of titles and photos to a feature store"),
    "inspect": ("fashionbert_fast.commands.inspect", "what is in a feature store, and whether it is whole"),
    "pretrain": ("fashionbert_fast.commands.pretrain", "pre-train under DeepSpeed, in one process or many"),
    "baseline": ("fashionbert_fast.commands.baseline", "another system on the same store, to compare with"),
    "evaluate": ("fashionbert_fast.commands.evaluate", "rank titles and images of a held-out set"),
    "compare": ("fashionbert_fast.commands.compare", "two evaluations on the same queries: which model is better"),
    "embed": ("fashionbert_fast.commands.embed", "vectors of a store's titles, photos or both"),
    "index": ("fashionbert_fast.commands.index", "an index of vectors, or points in Qdrant"),
    "search": ("fashionbert_fast.commands.search", "products for words or a photo, as a table and a picture sheet"),
    "serve": ("fashionbert_fast.commands.serve", "a local page to search by words or a photo"),
    "export": ("fashionbert_fast.commands.export", "a checkpoint to a Hugging Face directory, and to ONNX"),
    "profile": ("fashionbert_fast.commands.profile", "where a training step's time goes, in ranges, kernels and bytes"),
    "bench": ("benchmarks.run", "side-by-side measurements, results checked first"),
    "doctor": ("fashionbert_fast.commands.doctor", "what is installed and what each operator would use here"),
}


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """The parser; only ``command``'s module is imported, so that --help answers at once."""
    parser = argparse.ArgumentParser(
        prog="fashionbert",
        description="Pre-train FashionBERT: match product titles with product photos.",
        epilog="Start with `fashionbert demo --out demo_out`; `fashionbert COMMAND --help` has examples.",
    )
    parser.add_argument("--version", action="version", version=f"fashionbert_fast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, summary) in COMMANDS.items():
        sub = commands.add_parser(
            name, help=summary, description=summary, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name == command:
            _module(name).add_arguments(sub)
    return parser


def _module(command: str) -> ModuleType:
    name = COMMANDS[command][0]
    if name.startswith("benchmarks."):  # beside the package in a checkout, which `make setup` leaves where it is
        checkout = Path(__file__).parent.parent
        if not (checkout / "benchmarks" / "run.py").is_file():
            raise InputError("not part of the installed package: run in a checkout of the source, after `make setup`")
        sys.path.insert(0, str(checkout))
    return importlib.import_module(name)


def main(argv: list[str] | None = None) -> int:
    """Entry point: 0 when the job is done, 1 where training diverged, 2 on bad input or an interrupted job."""
    argv = sys.argv[1:] if argv is None else argv
    # The deepspeed launcher puts this before everything else; the environment says the same.
    argv = [word for word in argv if not word.startswith("--local_rank=")]
    command = next((word for word in argv if word in COMMANDS), None)
    status = 2
    try:
        args = build_parser(command).parse_args(argv)
        return _module(args.command).run(args)
    except InputError as error:
        message = str(error)
    except TrainingStopped as error:
        message, status = str(error), 1
    except KeyboardInterrupt as interrupt:
        message = f"interrupted: {interrupt}" if str(interrupt) else "interrupted"
    if is_first_to_tell():
        print(f"fashionbert {command}: error: {message}", file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
