"""`fashionbert pretrain`."""

from __future__ import annotations

import argparse
import os
import shlex

from fashionbert_fast import config as settings
from fashionbert_fast.config import SHIPPED, load_config
from fashionbert_fast.errors import PeerLost, TrainingStopped

EPILOG = f"""examples:
  fashionbert pretrain --config base data.store=stores/mine train.output=runs/mine
  fashionbert pretrain --config base data.store=stores/mine train.output=runs/mine --resume
  torchrun --nproc-per-node 8 -m fashionbert_fast pretrain --config mine.yaml train.zero_stage=2
  deepspeed --num_gpus 8 --module fashionbert_fast pretrain --config mine.yaml

Files to start from: {", ".join(map(str, SHIPPED.values()))}
Every field and its meaning: {settings.__file__}
data.store and train.output have no default: set them in the file (as mine.yaml does above) or give them here.
The global batch is processes x train.micro_batch_size x train.gradient_accumulation_steps."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    files = f"YAML file, or {' or '.join(SHIPPED)}, which come along"
    parser.add_argument("--config", required=True, metavar="FILE", help=files)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that win over the file's")
    parser.add_argument("--resume", action="store_true", help="continue train.output from its newest valid checkpoint")


def run(args: argparse.Namespace) -> int:
    config = load_config(args.config, args.overrides)
    from fashionbert_fast.distributed import is_main
    from fashionbert_fast.engine.reporting.metrics import read_metrics
    from fashionbert_fast.engine.train import pretrain

    try:
        directory = pretrain(config, resume=args.resume)
    except KeyboardInterrupt as interrupt:
        kept = str(interrupt) or "its checkpoints are kept"
        raise KeyboardInterrupt(f"{config.train.output}: {kept}; continue with `{_again(args)}`") from None
    except PeerLost as lost:
        raise TrainingStopped(f"{config.train.output}: {lost}; continue with `{_again(args)}`") from None
    if is_main():
        steps = read_metrics(directory)[-1]["step"]  # fewer than train.steps where validation stopped it
        print(f"{directory}: {steps} steps done; metrics.jsonl, losses.png, weights.png, checkpoints/")
    return 0


def _again(args: argparse.Namespace) -> str:
    """The command that continues this run, to be pasted. Of a launch over several machines: what each of them runs."""
    words = ["pretrain", "--config", args.config, *args.overrides, "--resume"]
    here, all_ = (int(os.environ.get(name, "1")) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    if all_ == 1:
        return shlex.join(["fashionbert", *words])
    launcher = ["torchrun", "--nproc-per-node", str(here)]
    if here < all_:
        launcher += ["--nnodes", str(all_ // here), "..."]
    return shlex.join([*launcher, "-m", "fashionbert_fast", *words])
