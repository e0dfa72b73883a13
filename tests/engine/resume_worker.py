"""A run that is resumed is the uninterrupted one, at every ZeRO stage: called, or under torchrun started, by
test_resume.py.

torchrun --nproc-per-node 2 resume_worker.py STORE FOLDER PRECISION,...
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from benchmarks.steps.weights import master_weights, partitioned
from fashionbert_fast.config import load_config
from fashionbert_fast.distributed import init_distributed, shutdown
from fashionbert_fast.engine.build import Run, build, build_loader
from fashionbert_fast.engine.checkpointing.saver import load_checkpoint, save_checkpoint
from fashionbert_fast.engine.step import train_step
from fashionbert_fast.run_directory import newest_valid

STEPS, SAVED = 4, 2


def built(store: str, folder: Path, stage: int, precision: str, device: torch.device, *more: str) -> Run:
    """Dropout is the default's. A hidden size of 128 has matrices above ZeRO-3's threshold: they are partitioned."""
    config = load_config(
        None,
        [f"data.store={store}", f"train.output={folder}", "model.hidden_size=128", "model.heads=2", "model.layers=2",
         "model.intermediate_size=256", "model.vocab_size=300", "train.micro_batch_size=4",
         "train.gradient_accumulation_steps=2", f"train.steps={STEPS}", "train.lr=1e-3", f"train.precision={precision}",
         f"train.zero_stage={stage}", *more],
    )  # fmt: skip
    assert (
        "model.hidden_dropout=0" in more
        or min(config.model.hidden_dropout, config.model.attention_dropout, config.model.patch_dropout) == 0.1
    )
    run = build(config, folder, device)
    run.engine.train()
    return run


def trained(run: Run, first: int) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Losses of the steps after ``first`` and the weights after the last; saves on the way."""
    losses = []
    for step, micro_batches in enumerate(build_loader(run, first), start=first + 1):
        losses.append(train_step(run, micro_batches, step).losses_T)
        if run.config.train.zero_stage == 3:
            parts = partitioned(run.engine.module)
            assert {"encoder.layers.1.qkv.weight", "text_embeddings.word.weight"} <= set(parts), parts
        if step == SAVED:
            save_checkpoint(run.engine, run.directory, step, run.tokenizer_dir, run.config.to_yaml(), run.config.train)
    weights = master_weights(run.engine)
    run.engine.destroy()
    return losses, weights


def check(store: str, folder: Path, stage: int, precision: str, device: torch.device, *more: str) -> None:
    """AssertionError where losses or weights of the resumed run differ in a bit."""
    losses, weights = trained(built(store, folder, stage, precision, device, *more), 0)
    run = built(store, folder, stage, precision, device, *more)
    checkpoint, _ = newest_valid(folder)
    assert load_checkpoint(run.engine, checkpoint) == SAVED
    resumed_losses, resumed_weights = trained(run, SAVED)
    case = stage, precision
    assert torch.equal(torch.stack(resumed_losses), torch.stack(losses[SAVED:])), case
    assert all(torch.equal(resumed_weights[name], weights[name]) for name in weights), case
    # Master weights, not 16-bit ones: those of a LayerNorm, which are near 1, would not have moved in so few steps.
    finer = {name for name, weight in weights.items() if not torch.equal(weight, weight.bfloat16().float())}
    assert "encoder.layers.1.feed_forward_norm.weight" in finer, case


def main() -> None:
    store, folder, precisions = sys.argv[1:]
    device = init_distributed()
    for precision in precisions.split(","):
        for stage in (0, 1, 2, 3):
            check(store, Path(folder) / f"{precision}-{stage}", stage, precision, device)
    shutdown()


if __name__ == "__main__":
    main()
