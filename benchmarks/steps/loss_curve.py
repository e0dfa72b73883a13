"""Does the packed model learn what a plain one learns?

    python -m benchmarks.steps.loss_curve --store STORE --json FILE

From the same initial weights on the same batches of a store's real pairs, dropout 0, adaptive loss, AdamW:

    ours fp32           the packed model with this package's operators
    reference fp32      `benchmarks.steps.peers.PaddedFashionBert`: Hugging Face's BERT, padded, plain PyTorch
    ours bf16           bfloat16 weights, activations and gradients; AdamW on a float32 master copy
    reference, seed 1   the plain model again with two other seeds of the initial weights, of the order of the pairs, of
    reference, seed 2   negatives and of masks: how far apart curves lie that are equally right

Accepted, for the total loss and each task's (a curve is a loss at every step, before that step's update):

- fp32: ours within 1e-4 relative of the reference at every step.
- bf16: both curves averaged over the last 20 steps (from step 20 on), ours lies from the same seed's reference no
  further than the spread, max - min, of the three reference seeds at that step. The reference of the same seed is
  itself one end of the band min..max at two steps in three, and a curve that follows it closely is as often beyond that
  end as within: so the distance is accepted or refused, and how often ours lies inside the band is reported beside it.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

from benchmarks.measure import report
from fashionbert_fast.config import Config, load_config
from fashionbert_fast.data.batch import Batch
from fashionbert_fast.data.pairs import PairDataset
from fashionbert_fast.data.tokenizer import load_tokenizer
from fashionbert_fast.engine.build import build_dataset, build_model, find_tokenizer, seed_everything
from fashionbert_fast.engine.optimizer import build_optimizer, build_schedule
from fashionbert_fast.errors import InputError
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.files import check_writable, write_json
from fashionbert_fast.model.config import TASKS
from fashionbert_fast.objectives.pretraining import FashionBertForPreTraining
from fashionbert_fast.progress import progress

CURVES = ("total", *TASKS)
SEEDS = (0, 1, 2)
STEPS, QUICK_STEPS = 300, 60
WINDOW = 20  # steps a smoothed value is the mean of
TOLERANCE = 1e-4  # relative, ours in fp32 against the reference
# Of a model on a batch: the loss to run backward on, the three task losses.
Losses = Callable[[nn.Module, Batch], tuple[torch.Tensor, torch.Tensor]]


def configuration(store: Path, steps: int, pairs: int, lr: float, seed: int) -> Config:
    """A small core on the pairs `fashionbert pretrain` would draw, without dropout: minutes on two cores."""
    return load_config(None, [
        f"data.store={store}", "data.max_text_tokens=32", "model.layers=4", "model.hidden_size=256", "model.heads=4",
        "model.intermediate_size=1024", "model.initializer_range=0.0625", "model.hidden_dropout=0",
        "model.attention_dropout=0", "model.patch_dropout=0", "train.output=unused", f"train.steps={steps}",
        f"train.micro_batch_size={pairs}", f"train.lr={lr}", f"train.seed={seed}",
    ])  # fmt: skip


def ours_losses(model: FashionBertForPreTraining, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    output = model(batch.to(model.tia_head.classifier.weight.device))
    return output.loss, output.losses_T


def reference_losses(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    from benchmarks.steps.peers import pad

    return model(pad(batch).to(model.projection.weight.device))


def learn(
    name: str, master: nn.Module, losses: Losses, dataset: PairDataset, config: Config,
    dtype: torch.dtype = torch.float32,
) -> np.ndarray:  # fmt: skip
    """Train ``master`` (float32) over ``dataset`` and return its curves, (steps, 4) float64 in the order of CURVES.

    Args:
        dtype: of the weights, activations and gradients; below float32 AdamW updates ``master`` and the working copy
            takes over its rounded weights, as DeepSpeed's bf16 engine does.
    """
    master.train()
    working = master if dtype == torch.float32 else copy.deepcopy(master).to(dtype)
    optimizer = build_optimizer(master, config.train, next(master.parameters()).device)
    schedule = build_schedule(optimizer, config.train)
    curves = []
    for step in progress(range(config.train.steps), config.train.steps, name):
        loss, losses_T = losses(working, dataset[step][0])
        loss.backward()
        curves.append(torch.cat([loss.detach().view(1), losses_T]).double().cpu())
        if working is not master:
            for p, w in zip(master.parameters(), working.parameters(), strict=True):
                p.grad, w.grad = None if w.grad is None else w.grad.float(), None
        nn.utils.clip_grad_norm_(master.parameters(), config.train.gradient_clipping)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if working is not master:
            with torch.no_grad():
                for p, w in zip(master.parameters(), working.parameters(), strict=True):
                    w.copy_(p)
    return torch.stack(curves).numpy()


def run_all(store_path: Path, steps: int, pairs: int, lr: float, device: torch.device) -> dict[str, np.ndarray]:
    """The five runs: name -> curves (steps, 4)."""
    from benchmarks.steps.peers import PaddedFashionBert

    store = FeatureStore.open(store_path)
    with tempfile.TemporaryDirectory() as directory:
        tokenizer = load_tokenizer(
            find_tokenizer(configuration(store_path, steps, pairs, lr, 0), store, Path(directory))
        )
    runs = {}
    for seed in SEEDS:
        config = configuration(store_path, steps, pairs, lr, seed)
        dataset = build_dataset(config, store, tokenizer, rank=0, world_size=1)
        seed_everything(seed)
        ours = build_model(config, store, len(tokenizer)).to(device)
        reference = PaddedFashionBert.from_ours(ours).to(device)  # copies: the models share no storage
        name = "reference fp32" if seed == 0 else f"reference fp32, seed {seed}"
        runs[name] = learn(name, reference, reference_losses, dataset, config)
        if seed == 0:
            runs["ours bf16"] = learn("ours bf16", copy.deepcopy(ours), ours_losses, dataset, config, torch.bfloat16)
            runs["ours fp32"] = learn("ours fp32", ours, ours_losses, dataset, config)
    return runs


# Acceptance ----------------------------------------------------------------------------------------------------------
def smoothed(curve_S: np.ndarray) -> np.ndarray:
    """Means over WINDOW consecutive steps (all, where there are fewer); the first value ends the first window."""
    window = min(WINDOW, len(curve_S))
    return np.convolve(curve_S, np.full(window, 1 / window), mode="valid")


def compared(runs: dict[str, np.ndarray], curve: int) -> dict[str, np.ndarray]:
    """What is accepted or refused for one curve; of smoothed curves all but the first, over steps.

    fp32: |ours - reference| / |reference|. low, high: the band of the three reference seeds. reference, bf16: smoothed.
    share: the distance of bf16 from the reference as a share of the spread.
    """
    reference, ours = runs["reference fp32"][:, curve], runs["ours fp32"][:, curve]
    band = np.stack([smoothed(values[:, curve]) for name, values in runs.items() if name.startswith("reference")])
    bf16, plain, low, high = smoothed(runs["ours bf16"][:, curve]), smoothed(reference), band.min(0), band.max(0)
    fp32 = np.abs(ours - reference) / np.abs(reference)
    share = np.abs(bf16 - plain) / np.maximum(high - low, np.finfo(np.float64).tiny)
    return {"fp32": fp32, "low": low, "high": high, "reference": plain, "bf16": bf16, "share": share}


def _proof(text: str, met_S: np.ndarray) -> dict:
    return {"proof": text, "k": int(met_S.sum()), "n": len(met_S), "met": bool(met_S.all())}


def scoreboard(runs: dict[str, np.ndarray]) -> tuple[list[dict], dict]:
    """The contract's rows (steps that agree, of how many), and beside them the measured extremes of each curve."""
    rows, measured = [], {}
    for i, curve in enumerate(CURVES):
        c = compared(runs, i)
        inside_S = (c["low"] <= c["bf16"]) & (c["bf16"] <= c["high"])
        rows.append(
            _proof(f"{curve} loss, fp32: within {TOLERANCE:g} relative of the reference", c["fp32"] <= TOLERANCE)
        )
        rows.append(_proof(
            f"{curve} loss, bf16, mean of {WINDOW} steps: from the reference no further than three seeds spread",
            c["share"] <= 1,
        ))  # fmt: skip
        measured[curve] = {
            "fp32_largest_relative_difference": float(c["fp32"].max()),
            "bf16_largest_share_of_spread": float(c["share"].max()),
            "bf16_median_share_of_spread": float(np.median(c["share"])),
            "bf16_share_of_steps_inside_min_max": float(inside_S.mean()),
        }
    return rows, measured


# The picture ---------------------------------------------------------------------------------------------------------
COLOURS = {"reference": "#9498a0", "fp32": "#4269d0", "bf16": "#ff725c"}
TITLES = {"total": "total (adaptive loss)", "mlm": "masked words", "tia": "alignment", "mpm": "masked patches"}


def plot_curves(runs: dict[str, np.ndarray], path: Path, title: str) -> None:
    """A column a curve: above the smoothed losses with the seeds' band, below both differences against their bounds."""
    figure, axes = plt.subplots(2, len(CURVES), figsize=(17, 7), layout="constrained")
    figure.suptitle(title, fontsize=11)
    for i, curve in enumerate(CURVES):
        c, top, bottom = compared(runs, i), axes[0, i], axes[1, i]
        steps_S = np.arange(1, len(c["fp32"]) + 1)
        late_S = steps_S[-len(c["bf16"]) :]
        top.fill_between(late_S, c["low"], c["high"], color=COLOURS["reference"], alpha=0.3, label="reference, 3 seeds")
        top.plot(late_S, c["reference"], color="black", linewidth=1, label="reference fp32")
        top.plot(late_S, smoothed(runs["ours fp32"][:, i]), "--", color=COLOURS["fp32"], label="ours fp32")
        top.plot(late_S, c["bf16"], ":", linewidth=2, color=COLOURS["bf16"], label="ours bf16")
        bottom.plot(steps_S, np.maximum(c["fp32"], 1e-9), color=COLOURS["fp32"], label="fp32: relative difference")
        bottom.axhline(TOLERANCE, color=COLOURS["fp32"], linestyle="--", linewidth=1)
        bottom.plot(late_S, np.maximum(c["share"], 1e-9), color=COLOURS["bf16"], label="bf16: share of the spread")
        bottom.axhline(1, color=COLOURS["bf16"], linestyle="--", linewidth=1)
        bottom.set_yscale("log")
        bottom.set_xlabel("step")
        top.set_title(f"{TITLES[curve]}, mean of {min(WINDOW, len(steps_S))} steps", loc="left", fontsize=10)
        for axis in (top, bottom):
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(fontsize=8, frameon=False)
    axes[1, 0].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


# The command ---------------------------------------------------------------------------------------------------------
def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.steps.loss_curve",
        description="Loss curves of the packed model beside a plain one's.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  python -m benchmarks.steps.loss_curve --store STORE --json loss_curve.json\n"
        "  python -m benchmarks.steps.loss_curve --store STORE --json loss_curve.json --quick",
    )  # fmt: skip
    parser.add_argument("--store", type=Path, required=True, help="feature store that `fashionbert prepare` wrote")
    parser.add_argument(
        "--json",
        type=Path,
        required=True,
        metavar="FILE",
        help="write curves and scoreboard; a picture beside it (.png)",
    )
    parser.add_argument("--steps", type=int, help=f"of each of the five runs (default: {STEPS}; --quick {QUICK_STEPS})")
    parser.add_argument("--pairs", type=int, default=16, help="a step (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=3e-4, help="peak learning rate (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps")
    return parser


def measure(args: argparse.Namespace) -> dict:
    """Run, judge, write both files and return what the JSON holds."""
    steps = args.steps if args.steps is not None else QUICK_STEPS if args.quick else STEPS
    picture = args.json.with_suffix(".png")
    if picture == args.json:
        raise InputError(f"{args.json}: the picture is written under that name; end the JSON's in .json")
    for path in (args.json, picture):
        check_writable(path)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    runs = run_all(args.store, steps, args.pairs, args.lr, device)
    rows, measured = scoreboard(runs)
    settings = {"steps": steps, "pairs": args.pairs, "lr": args.lr, "window": WINDOW, "seeds": list(SEEDS)}
    curves = {name: dict(zip(CURVES, values_S4.T.tolist(), strict=True)) for name, values_S4 in runs.items()}
    result = report([], device) | {"rows": rows, "measured": measured, "settings": settings, "curves": curves}
    plot_curves(runs, picture, f"{steps} steps of {args.pairs} pairs, {result['device']}, commit {result['commit']}")
    write_json(args.json, result)
    return result


def main(argv: list[str] | None = None) -> int:
    """0 when measured, whether met or not; 2 on bad input."""
    args = build_parser().parse_args(argv)
    try:
        result = measure(args)
    except InputError as error:
        print(f"benchmarks.steps.loss_curve: error: {error}", file=sys.stderr)
        return 2
    for row in result["rows"]:
        print(f"{'met   ' if row['met'] else 'MISSED'} {row['k']:4}/{row['n']:<4} {row['proof']}")
    for curve, values in result["measured"].items():
        print(f"{curve:5} " + "  ".join(f"{name} {value:.3g}" for name, value in values.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
