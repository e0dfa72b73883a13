"""Trains with and without graphs under DeepSpeed on a CPU and compares: started by test_graphs.py.

graphs_worker.py STORE FOLDER PRECISION
"""

from __future__ import annotations

import sys

import torch
from fake_capture import FakeCapture

from benchmarks.steps.weights import master_weights
from fashionbert_fast.config import load_config
from fashionbert_fast.distributed import init_distributed, shutdown
from fashionbert_fast.engine import build as building
from fashionbert_fast.engine.speed import graphs
from fashionbert_fast.engine.step import train_step

capture = FakeCapture()
building.check_cuda_graphs = lambda device: None
graphs.EncoderGraphs._capture = staticmethod(capture)


def trained(store: str, folder: str, precision: str, stage: int, with_graphs: bool, device) -> list[torch.Tensor]:
    """Losses of each step and the parameters after the last."""
    config = load_config(
        None,
        [f"data.store={store}", f"train.output={folder}", "data.split=all", "model.hidden_size=32", "model.heads=2",
         "model.layers=2", "model.intermediate_size=64", "model.vocab_size=200", "train.steps=6",
         "train.micro_batch_size=4", "train.gradient_accumulation_steps=2", f"train.precision={precision}",
         "train.lr=1e-3", "train.eps=1e-3", f"train.zero_stage={stage}", f"train.cuda_graphs={with_graphs}"],
    )  # fmt: skip
    run = building.build(config, building.Path(folder), device)
    run.engine.train()
    losses = [
        train_step(run, batches, step).losses_T for step, batches in enumerate(building.build_loader(run, 0), start=1)
    ]
    weights = list(master_weights(run.engine).values())
    run.engine.destroy()
    return [*losses, *weights]


def main() -> None:
    device = init_distributed()
    for stage in (0, 1, 2):
        plain, graphed = (trained(*sys.argv[1:], stage, with_graphs, device) for with_graphs in (False, True))
        torch.testing.assert_close(graphed, plain, atol=1e-6, rtol=1e-5)
        assert capture.captured, "no graph was captured"
        capture.captured.clear()
    shutdown()


if __name__ == "__main__":
    main()
