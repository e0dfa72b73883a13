"""Trains twice at ZeRO 3 in this process group, with and without validation: started by test_validation.py.

torchrun --nproc-per-node 2 validation_worker.py STORE FOLDER OVERRIDE...
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from in_process import one_process, run_here
from safetensors.torch import load_file

from fashionbert_fast.engine.checkpoint import resolve_model_dir
from fashionbert_fast.engine.distributed import barrier, is_main, shutdown


def main() -> None:
    store, folder, *overrides = sys.argv[1:]
    layout = ["train.micro_batch_size=4", "train.zero_stage=3", *overrides]
    with one_process():
        validated = run_here(Path(store), Path(folder) / "validated", *layout)
        without = run_here(Path(store), Path(folder) / "without", *layout, "validation.every=0")
    if is_main():
        a, b = (load_file(resolve_model_dir(run) / "model.safetensors") for run in (validated, without))
        print(f"same weights: {all(torch.equal(a[name], b[name]) for name in a)}")
    barrier()
    shutdown()


if __name__ == "__main__":
    main()
