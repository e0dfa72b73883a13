"""One of two ranks: what a training step really sends at each ZeRO stage. cluster_worker.py STORE FOLDER OUT."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch.distributed as dist

from fashionbert_fast.config import load_config
from fashionbert_fast.distributed import init_distributed, shutdown
from fashionbert_fast.engine.build import build
from fashionbert_fast.engine.step import train_step

store, folder, out = sys.argv[1:]
device = init_distributed()
log: list[tuple[str, int]] = []


def noted(name: str, kind: str, which: int):
    """``dist.NAME``, noting the bytes of its argument ``which``: the whole vector."""
    original = getattr(dist, name)

    def call(*args, **kwargs):
        log.append((kind, args[which].numel() * args[which].element_size()))
        return original(*args, **kwargs)

    setattr(dist, name, call)


found = []
for stage in (0, 1, 2):
    for micro_batches in (1, 2):
        for precision in ("fp32", "bf16"):
            config = load_config(None, [
                f"data.store={store}", f"train.output={folder}", "data.split=all", "model.hidden_size=32",
                "model.heads=2", "model.layers=2", "model.intermediate_size=64", "model.vocab_size=200",
                "train.steps=6", "train.micro_batch_size=4", f"train.gradient_accumulation_steps={micro_batches}",
                f"train.precision={precision}", f"train.zero_stage={stage}", "train.optimizer_backend=torch",
            ])  # fmt: skip
            run = build(config, Path(folder), device)
            run.engine.train()
            train_step(run, run.dataset[0], 1)
            names = ("all_reduce", "reduce_scatter_tensor", "all_gather_into_tensor")
            originals = {name: getattr(dist, name) for name in names}
            log.clear()
            noted("all_reduce", "all_reduce", 0)
            noted("reduce_scatter_tensor", "reduce_scatter", 1)
            noted("all_gather_into_tensor", "all_gather", 0)
            train_step(run, run.dataset[1], 2)
            for name, original in originals.items():
                setattr(dist, name, original)
            optimizer = run.engine.optimizer
            flat = optimizer.gradients if stage == 0 else optimizer._flat
            found.append({
                "stage": stage, "micro_batches": micro_batches, "itemsize": flat[0].staged.element_size(),
                "groups": [group.staged.numel() for group in flat], "sent": list(log),
            })  # fmt: skip
            run.engine.destroy()
if dist.get_rank() == 0:
    Path(out).write_text(json.dumps(found))
dist.barrier()
shutdown()
