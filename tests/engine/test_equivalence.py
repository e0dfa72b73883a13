"""One process x 8, two x 4 and two x 2 x 2 learn the same, at every ZeRO stage and with every way of weighting."""

from __future__ import annotations

import functools
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from training import ENVIRONMENT

from fashionbert_fast.model.config import METHODS as EVERY

WORKER = Path(__file__).parent / "equivalence_worker.py"
METHODS, STAGES = ("loss", "gradient", "min_norm", "fixed"), (0, 1, 2, 3)
OTHERS, SOME = tuple(method for method in EVERY if method not in METHODS), (0, 3)  # stages that they are tried at
TOLERANCE = 1e-5


def _run(
    out: Path, store: Path, processes: int, micro_batch: int, accumulation: int, methods, precision: str = "fp32",
    stages=STAGES,
) -> dict:  # fmt: skip
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*launcher, str(WORKER), str(store), str(out), str(micro_batch), str(accumulation), ",".join(methods),
               ",".join(map(str, stages)), precision]  # fmt: skip
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    if "SIGABRT" in done.stderr:
        # Seen once in some thirty runs, on a machine loaded fivefold, and not understood: a process that aborts says
        # nothing about what is learned. Tell, and try once more.
        warnings.warn(f"a process aborted: {done.stderr[:8000]}", stacklevel=1)
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:4000] + "\n[...]\n" + done.stderr[-4000:]
    return torch.load(out)


LAYOUTS = {  # processes, pairs a micro-batch, micro-batches a step, ways of weighting, precision, ZeRO stages
    "1x8": (1, 8, 1, METHODS),
    "2x4": (2, 4, 1, METHODS),
    "1x8 others": (1, 8, 1, OTHERS, "fp32", SOME),
    "2x4 others": (2, 4, 1, OTHERS, "fp32", SOME),
    "2x2x2": (2, 2, 2, ("fixed",)),
    "2x4 bf16": (2, 4, 1, ("loss", "min_norm"), "bf16"),
    "2x2x2 bf16": (2, 2, 2, ("fixed",), "bf16"),
}


@pytest.fixture(scope="module")
def curves(store_path, tmp_path_factory):
    """(layout) -> its curves, made when first asked for."""
    folder = tmp_path_factory.mktemp("equivalence")
    return functools.cache(lambda layout: _run(folder / f"{layout}.pt", store_path, *LAYOUTS[layout]))


def _difference(a: dict, b: dict, key: str) -> float:
    if key == "parameters":
        return max((a[key][name] - b[key][name]).abs().max().item() for name in a[key])
    return (a[key] - b[key]).abs().max().item()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("method", METHODS)
def test_ranks_do_not_change_what_is_learned(curves, method, stage):
    reference = curves("1x8")[method, 0]  # every stage against stage 0 of one process
    for layout in ("1x8", "2x4"):
        for key in ("losses", "weights", "parameters"):
            assert _difference(curves(layout)[method, stage], reference, key) <= TOLERANCE, (layout, key)


@pytest.mark.parametrize("stage", SOME)
@pytest.mark.parametrize("method", OTHERS)
def test_ranks_do_not_change_what_other_weightings_learn(curves, method, stage):
    """Window means, first losses and log-variances are of all ranks' losses."""
    reference = curves("1x8 others")[method, 0]
    assert (reference["weights"] - reference["weights"][0]).abs().max() > 100 * TOLERANCE  # they follow the losses
    for layout in ("1x8 others", "2x4 others"):
        for key in ("losses", "weights", "parameters"):
            assert _difference(curves(layout)[method, stage], reference, key) <= TOLERANCE, (layout, key)


@pytest.mark.parametrize("stage", STAGES)
def test_accumulation_does_not_change_what_fixed_weights_learn(curves, stage):
    for key in ("losses", "weights", "parameters"):
        assert _difference(curves("2x2x2")["fixed", stage], curves("1x8")["fixed", 0], key) <= TOLERANCE, key


@pytest.mark.parametrize("stage", STAGES)
def test_bf16_follows_the_fp32_oracle(curves, stage):
    """DeepSpeed's own CI does not cover bf16 on CPU, and past releases scaled or lost gradients there."""
    for layout, methods in (("2x4 bf16", ("loss", "min_norm")), ("2x2x2 bf16", ("fixed",))):
        for method in methods:
            low, full = curves(layout)[method, stage], curves("1x8")[method, 0]
            torch.testing.assert_close(low["losses"], full["losses"], rtol=0.02, atol=0.01)
            moved = sum((full["parameters"][n] - full["start"][n]).square().sum() for n in full["start"]).sqrt()
            error = sum((low["parameters"][n] - full["parameters"][n]).square().sum() for n in full["start"]).sqrt()
            assert error < 0.05 * moved, (layout, method, (error / moved).item())  # 0.027 in one process


def test_the_runs_learned_something_and_differ_by_method(curves):
    """Else equality above would say nothing."""
    for method in METHODS:
        losses = curves("1x8")[method, 0]["losses"]
        assert losses[-5:, 0].mean() < losses[:5, 0].mean() - 0.1, method
    assert _difference(curves("1x8")["loss", 0], curves("1x8")["min_norm", 0], "parameters") > 100 * TOLERANCE
    assert _difference(curves("1x8")["gradient", 0], curves("1x8")["fixed", 0], "parameters") > 100 * TOLERANCE
