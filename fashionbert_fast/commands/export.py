"""`fashionbert export`: a checkpoint to a directory that other programs read."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fashionbert_fast.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

EPILOG = """examples:
  fashionbert export --checkpoint runs/mine --out exported --license apache-2.0
  fashionbert export --checkpoint runs/mine --out exported --evaluation evaluation.json   # its figures on the card
  fashionbert export --checkpoint runs/mine --out exported --onnx                         # every graph, checked
  fashionbert export --checkpoint runs/mine --out exported --onnx scorer text_vectors --data stores/mine

One directory for all: transformers.BertModel and BertForMaskedLM take the core, FashionBertForPreTraining and
FashionBertProcessor the whole model; README.md is its model card. docs/export.md shows how each is loaded.

--onnx writes float32 graphs to OUT/onnx: scorer, text_vectors, image_vectors, pair_vectors, and query_vectors of a
model that has a segment for queries. Each is run in onnxruntime on 100 pairs and compared with the model; where one
differs nothing is written and the exit status is 1. OUT/onnx/onnx.json has the largest differences."""

USES = {
    "model.safetensors": "transformers' BertModel and BertForMaskedLM; FashionBertForPreTraining",
    "config.json": "both",
    "tokenizer.json": "transformers' AutoTokenizer",
    "processor_config.json": "FashionBertProcessor",
    "patch_features.json": "FashionBertProcessor: which patches the model knows",
    "README.md": "the model card",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    # fmt: off
    add = parser.add_argument
    add("--checkpoint", required=True, type=Path, metavar="DIR", help="run or model directory")
    add("--out", required=True, type=Path, metavar="DIR", help="the directory to write; its name is the model's")
    add("--license", metavar="ID", help="licence field of the card, as the hub spells it: apache-2.0, mit, other, ...")
    add("--base-model", metavar="ID", help="hub id of the core that training began from (default: where it is certain)")
    add("--evaluation", type=Path, metavar="FILE", help="figures for the card, by `fashionbert evaluate --json`")
    add("--onnx", nargs="*", metavar="GRAPH", help="ONNX graphs as well: these, or all")
    add("--data", type=Path, metavar="STORE", help="check the graphs on this store's pairs (default: on drawn ones)")
    # fmt: on


def run(args: argparse.Namespace) -> int:
    if args.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", args.license):
        raise InputError(f"--license {args.license}: no identifier of the hub; give one like apache-2.0, mit or other")
    if args.base_model is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", args.base_model):
        raise InputError(f"--base-model {args.base_model}: no hub id; give owner/name")
    if args.data is not None and args.onnx is None:
        raise InputError("--data: is what the graphs are checked on; add --onnx")
    from rich.console import Console

    from fashionbert_fast.export.bert import Options, export
    from fashionbert_fast.export.check import ResultsDiffer
    from fashionbert_fast.progress import progress_bar

    options = Options(args.license, args.base_model, args.evaluation, args.onnx, args.data)
    try:
        with progress_bar() as bar:
            task = bar.add_task("graphs", total=None, visible=args.onnx is not None)
            report = export(
                args.checkpoint, args.out, options,
                on_graph=lambda name, number, of: bar.update(task, completed=number, total=of, detail=name),
            )  # fmt: skip
    except ResultsDiffer as error:
        print(f"fashionbert export: error: {error}; nothing was written", file=sys.stderr)
        return 1
    Console().print(table(args.out, report))
    return 0


def table(out: Path, report: dict[str, Any]) -> Table:
    """The files of ``out``, what each is for, and how far its graphs are from the model."""
    from rich.filesize import decimal
    from rich.table import Table

    shown = Table(title=str(out))
    shown.add_column("file")
    shown.add_column("size", justify="right")
    shown.add_column("for")
    for name, use in USES.items():
        if (out / name).exists():
            shown.add_row(name, decimal((out / name).stat().st_size), use)
    for name, graph in report.get("graphs", {}).items():
        size = sum((out / "onnx" / file).stat().st_size for file in graph["files"])
        use = f"{', '.join(graph['inputs'])} -> {graph['output']}; differs by {graph['largest_difference']:.0e}"
        shown.add_row(f"onnx/{name}.onnx", decimal(size), use)
    if report:
        shown.caption = (
            f"opset {report['opset']}; {report['pairs']} pairs in onnxruntime against the model, "
            f"at most {report['tolerance']:.0e} apart: onnx/onnx.json"
        )
    return shown
