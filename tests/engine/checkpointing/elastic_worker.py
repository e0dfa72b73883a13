"""What one process saved goes on under two at every ZeRO stage, and what they save is left for one; started by
test_elastic.py.

torchrun --nproc-per-node 2 elastic_worker.py STORE FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from engine.resume_worker import SAVED, built, trained

from fashionbert_fast.distributed import init_distributed, is_main, shutdown
from fashionbert_fast.engine.checkpointing.resume import resume_run
from fashionbert_fast.engine.train import train
from fashionbert_fast.engine.zero import state
from fashionbert_fast.run_directory import list_checkpoints

TOLERANCE = 1e-6
NO_DROPOUT = ("model.hidden_dropout=0", "model.attention_dropout=0", "model.patch_dropout=0")
ONE, TWO = (*NO_DROPOUT, "train.micro_batch_size=8"), (*NO_DROPOUT, "train.micro_batch_size=4")


def check_resumed(run, reference: dict) -> None:
    """``run`` goes on from its folder's checkpoint as ``reference`` went on, to `TOLERANCE`."""
    assert resume_run(run) == SAVED
    losses, weights = trained(run, SAVED)
    torch.testing.assert_close(torch.stack(losses), reference["losses"][SAVED:], rtol=0, atol=TOLERANCE)
    for name, weight in reference["weights"].items():
        # Adam makes a full step of a gradient that is nothing but rounding: the key's bias has no other.
        if not name.endswith("qkv.bias"):
            torch.testing.assert_close(weights[name], weight, rtol=0, atol=5 * TOLERANCE, msg=name)


def main() -> None:
    store, folder = sys.argv[1], Path(sys.argv[2])
    device = init_distributed()
    for stage in (0, 1, 2, 3):
        reference = torch.load(folder / "reference.pt")
        check_resumed(built(store, folder / f"{stage}", stage, "fp32", device, *TWO), reference)
        losses, weights = trained(built(store, folder / f"two-{stage}", stage, "fp32", device, *TWO), 0)
        if is_main():
            torch.save({"losses": torch.stack(losses), "weights": weights}, folder / f"two-{stage}.pt")
    check_a_disk_that_fails_one_rank(built(store, folder / "fails", 1, "fp32", device, *TWO))
    shutdown()


def check_a_disk_that_fails_one_rank(run) -> None:
    """One checkpoint is lost to all ranks alike, and the run goes on."""
    write = state.Snapshot.write

    def fail_once(snapshot, directory):
        if run.rank == 1 and directory.parent.name == ".step-00000001.partial":
            raise OSError(5, "Input/output error")
        return write(snapshot, directory)

    state.Snapshot.write = fail_once
    run.config.train.checkpoint_every, run.config.train.log_every = 1, 1
    train(run, 0)
    assert [path.name for path in list_checkpoints(run.directory)] == ["step-00000003", "step-00000004"]
    assert not list((run.directory / "checkpoints").glob(".*"))
    state.Snapshot.write = write


if __name__ == "__main__":
    main()
