"""Trains twice at ZeRO 3 in this process group, with and without validation: started by test_validation.py.

torchrun --nproc-per-node 2 validation_worker.py FOLDER FIELD=VALUE...
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.steps.weights import partitioned
from fashionbert_fast.config import load_config
from fashionbert_fast.distributed import barrier, init_distributed, is_main, shutdown
from fashionbert_fast.engine.build import build
from fashionbert_fast.engine.train import train
from fashionbert_fast.run_directory import resolve_model_dir


def main() -> None:
    folder, *fields = sys.argv[1:]
    device, names = init_distributed(), ("validated", "without")
    for name, every in zip(names, ([], ["validation.every=0"]), strict=True):
        directory = Path(folder) / name
        directory.mkdir(exist_ok=True)
        config = load_config(None, [*fields, "train.zero_stage=3", f"train.output={directory}", *every])
        run = build(config, directory, device)
        assert "encoder.layers.0.qkv.weight" in partitioned(run.engine.module)
        train(run, 0)
        run.engine.destroy()
    if is_main():
        a, b = (load_file(resolve_model_dir(Path(folder) / name) / "model.safetensors") for name in names)
        print(f"same weights: {all(torch.equal(a[name], b[name]) for name in a)}")
    barrier()
    shutdown()


if __name__ == "__main__":
    main()
