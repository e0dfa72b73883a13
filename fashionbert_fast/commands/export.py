"""`fashionbert export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fashionbert_fast.errors import InputError

EPILOG = """examples:
  fashionbert export --checkpoint runs/mine --out exported
  python -c "from transformers import BertModel; BertModel.from_pretrained('exported')"

The core, its pooler and its MLM head; patch embeddings and the other heads have no place in Hugging Face's BERT."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("--checkpoint", required=True, type=Path, metavar="DIR", help="run or model directory")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where the exported checkpoint goes")


def run(args: argparse.Namespace) -> int:
    from fashionbert_fast.data.tokenizer import copy_tokenizer
    from fashionbert_fast.objectives.pretraining import FashionBertForPreTraining
    from fashionbert_fast.run_directory import resolve_model_dir

    source = resolve_model_dir(args.checkpoint)
    if args.out.exists() and any(args.out.iterdir() if args.out.is_dir() else [args.out]):
        raise InputError(f"{args.out}: exists and is not empty; choose another directory")
    FashionBertForPreTraining.from_pretrained(source).export_bert(args.out)
    tokenizer = "no tokenizer, for there is none"  # what save_pretrained wrote from Python has none beside it
    if any((source / name).exists() for name in ("tokenizer.json", "vocab.txt")):
        copy_tokenizer(source, args.out)
        tokenizer = "the tokenizer"
    print(f"{args.out}: config.json, model.safetensors and {tokenizer}; for transformers.BertModel and BertForMaskedLM")
    return 0
