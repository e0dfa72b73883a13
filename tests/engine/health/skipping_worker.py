"""One number of one rank's micro-batch is not finite: AssertionError unless the step changes nothing on any rank, all
count it, and the rank is named where a batch is to blame. Started by test_divergence.py:

torchrun --nproc-per-node 2 skipping_worker.py STORE FOLDER [deepspeed]

deepspeed: with DeepSpeed's own optimizer, which compiles for a minute where it was never used.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from fashionbert_fast.config import load_config
from fashionbert_fast.data.batch import Batch
from fashionbert_fast.distributed import init_distributed, shutdown
from fashionbert_fast.engine.build import Run, build
from fashionbert_fast.engine.health.nonfinite import NonFiniteMonitor
from fashionbert_fast.engine.step import train_step
from fashionbert_fast.engine.train_state import TrainState

# Stage, precision, and an optimizer other than AdamW of torch.
CASES = [(stage, precision, "") for stage in (0, 1, 2, 3) for precision in ("fp32", "bf16")]
CASES += [(0, "bf16", "train.optimizer=lamb")]
DEEPSPEED = "train.optimizer_backend=deepspeed"
OF_DEEPSPEED = [(stage, "bf16", DEEPSPEED) for stage in (0, 1, 3)] + [(1, "fp32", DEEPSPEED)]


def _built(store: str, folder: Path, device: torch.device, stage: int, precision: str, other: str) -> Run:
    config = load_config(
        None,
        [f"data.store={store}", f"train.output={folder}", "model.hidden_size=32", "model.heads=2", "model.layers=2",
         "model.intermediate_size=64", "model.vocab_size=300", "train.micro_batch_size=4", "train.steps=8",
         "train.gradient_accumulation_steps=2", f"train.precision={precision}", f"train.zero_stage={stage}",
         "weighting.method=fixed",  # weights of a loss that is infinite would make its gradient so as well
         "train.max_skipped_steps=1", *([other] if other else [])],
    )  # fmt: skip
    run = build(config, folder, device)
    run.engine.train()
    return run


def _everything(run: Run) -> list[torch.Tensor]:
    """Copies of all weights, of 16 and of 32 bits, and of the optimizer's state, as far as this rank has them."""
    parameters = [getattr(p, "ds_tensor", p) for p in run.engine.module.parameters()]
    optimizer = run.engine.basic_optimizer
    masters = [p for group in optimizer.param_groups for p in group["params"]]
    state = [torch.as_tensor(x) for of_one in optimizer.state.values() for x in of_one.values()]
    return [x.detach().clone() for x in (*parameters, *masters, *state)]


def _spoil_features(run: Run, micro_batches: list[Batch]) -> None:
    micro_batches[1].inputs.features_IPD[0, 1, 2] = math.nan


def _spoil_gradient(run: Run, micro_batches: list[Batch]) -> None:
    def hook(_module, _inputs, output):
        handle.remove()
        output.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([3]), math.inf))

    handle = run.engine.module.encoder.layers[1].register_forward_hook(hook)


def _spoil_loss(run: Run, micro_batches: list[Batch]) -> None:
    """Infinite, with a gradient that is not."""

    def hook(_module, _inputs, output):
        handle.remove()
        return output + math.inf

    handle = run.engine.module.mpm_head.register_forward_hook(hook)


def check(run: Run, step: int, spoil, named: str) -> None:
    run.state = TrainState()
    micro_batches, monitor = run.dataset[step - 1], NonFiniteMonitor(run)
    if run.rank == 1:
        spoil(run, micro_batches)
    before = _everything(run)
    report = train_step(run, micro_batches, step)
    assert not report.norm.isfinite()
    same = [torch.equal(old, new) for old, new in zip(before, _everything(run), strict=True)]
    assert len(same) > 40 and all(same), f"{same.count(False)} of {len(same)} changed"
    monitor.add(step, report)
    told = [None, None]
    dist.all_gather_object(told, (monitor.has_unreported(), monitor.num_skipped(), monitor.stop_reason()))
    assert told[0] == told[1], told
    found, skipped, complaint = told[0]
    assert (found, skipped) == (True, 1) and complaint.startswith(f"step {step}: {named}"), complaint
    products = 8 if "rank" in named else 16  # of two micro-batches of 4 pairs, on each rank
    assert f"; its {products} products are " in complaint, complaint


def main() -> None:
    store, folder, *deepspeed = sys.argv[1:]
    device = init_distributed()
    for stage, precision, other in OF_DEEPSPEED if deepspeed else CASES:
        run = _built(store, Path(folder), device, stage, precision, other)
        try:
            train_step(run, run.dataset[0], 1)
            check(run, 2, _spoil_features, "loss of mpm is not finite on rank 1 (")  # a masked patch: no input
            check(run, 3, _spoil_gradient, "gradient norm is not finite (")
            check(run, 4, _spoil_loss, "loss of mpm is not finite on rank 1 (")
            before = _everything(run)
            report = train_step(run, run.dataset[4], 5)  # and the next one stands
            assert report.norm.isfinite() and not all(map(torch.equal, before, _everything(run)))
        except AssertionError as error:
            raise AssertionError(f"ZeRO {stage}, {precision}, {other}: {error}") from error
        run.engine.destroy()
    shutdown()


if __name__ == "__main__":
    main()
