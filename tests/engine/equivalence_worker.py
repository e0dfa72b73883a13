"""Runs a list of training cases in this process group and writes each one's curve: started by test_equivalence.py.

[torchrun --nproc-per-node 2] equivalence_worker.py STORE OUT.pt MICRO_BATCH ACCUMULATION METHOD,... STAGE,... PRECISION
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed

from benchmarks.steps.weights import master_weights, partitioned
from fashionbert_fast.config import load_config
from fashionbert_fast.distributed import barrier, init_distributed, is_main, shutdown
from fashionbert_fast.engine.build import build, build_loader
from fashionbert_fast.engine.step import train_step

STEPS = 20


def run_case(store: str, directory: Path, method: str, stage: int, device, layout: list[str]) -> dict:
    """Losses, task weights, first and last parameters of STEPS steps of a tiny model.

    layout: micro-batch size, accumulation steps and precision, as overrides.
    """
    config = load_config(
        None,
        [f"data.store={store}", f"train.output={directory}", "data.split=all", "model.hidden_size=128", "model.heads=2",
         "model.layers=2", "model.intermediate_size=128", "model.hidden_dropout=0", "model.attention_dropout=0",
         "model.patch_dropout=0", "model.vocab_size=200", *layout, f"train.steps={STEPS}", "train.lr=1e-3",
         # Adam divides by sqrt(v) + eps: with the usual eps a gradient that is zero up to rounding (the key bias) would
         # turn rounding noise into full-size steps, and this test would compare noise.
         "train.eps=1e-3", f"train.zero_stage={stage}", f"weighting.method={method}",
         "weighting.preference=[0.5,1.0,2.0]", "weighting.window=4"],
    )  # fmt: skip
    run = build(config, directory, device)
    run.engine.train()
    start = master_weights(run.engine)
    losses, weights = [], []
    for step, micro_batches in enumerate(build_loader(run, 0), start=1):
        report = train_step(run, micro_batches, step)
        if stage == 3:  # else equality below would say nothing about weights in parts
            assert {"encoder.layers.1.qkv.weight", "text_embeddings.word.weight"} <= set(partitioned(run.engine.module))
        losses.append(report.losses_T)
        weights.append(report.weights_T)
    everyone = [None] * run.world_size
    torch.distributed.all_gather_object(everyone, torch.stack(weights))
    assert all(torch.equal(everyone[0], other) for other in everyone), "task weights differ between ranks"
    parameters = master_weights(run.engine)
    run.engine.destroy()
    return {"losses": torch.stack(losses), "weights": torch.stack(weights), "parameters": parameters, "start": start}


def main() -> None:
    store, out, micro_batch, accumulation, methods, stages, precision = sys.argv[1:]
    layout = [f"train.micro_batch_size={micro_batch}", f"train.gradient_accumulation_steps={accumulation}",
              f"train.precision={precision}"]  # fmt: skip
    device = init_distributed()
    results = {
        (method, int(stage)): run_case(store, Path(out).with_suffix(""), method, int(stage), device, layout)
        for method in methods.split(",")
        for stage in stages.split(",")
    }
    if is_main():
        torch.save(results, out)
    barrier()
    shutdown()


if __name__ == "__main__":
    main()
