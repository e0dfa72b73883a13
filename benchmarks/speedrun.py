"""How soon is 0.80 of held-out alignment accuracy reached on the demo's drawn catalogue? Ours beside the plain recipe.

    python -m benchmarks.speedrun --json speedrun.json                   # 3 seeds: about 20 minutes on two quiet cores
    python -m benchmarks.speedrun --json speedrun.json --quick           # one seed
    python -m benchmarks.speedrun --json speedrun.json --record          # and add it to the records

    ours    the demo's configuration by the engine's own `pretrain`, DeepSpeed, metrics and all
    plain   Hugging Face's BERT, padded (`benchmarks.steps.peers`), torch's AdamW: of the same sizes, initial
            distribution, catalogue, sampling of pairs and masks, weights of the three tasks and learning rates (over as
            many steps, or --plain-steps), without a contrastive loss and with the article's head

Seconds from the opening of the store to the step whose validation found it, imports and validations not counted; both
are validated on the same held-out pairs after the same steps. In turn, seed after seed; the ratio is the median of the
seeds'. Before anything is timed the plain model's losses of a batch are found equal to those of ours without its
contrastive loss and with that head. A run that ends without reaching it has no time.
"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.measure import Figure, Row, report
from benchmarks.steps.peers import PaddedFashionBert, pad
from fashionbert_fast.config import Config, load_config
from fashionbert_fast.data.pairs import PairDataset
from fashionbert_fast.data.tokenizer import load_tokenizer
from fashionbert_fast.demo.run import CONFIG, draw
from fashionbert_fast.engine import train
from fashionbert_fast.engine.build import build_dataset, build_model, find_tokenizer, seed_everything
from fashionbert_fast.engine.optimizer import build_optimizer, build_schedule
from fashionbert_fast.engine.validation import HeldOutPairs, Validation
from fashionbert_fast.errors import InputError
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.files import check_writable, read_json, write_json

TARGET, EVERY, PRODUCTS = 0.80, 40, 3648  # of accuracy; steps between validations; of the catalogue
RECORDS = Path(__file__).parent / "results" / "speedrun.json"
PLAIN = ("contrastive.weight=0", "contrastive.first_steps=0", "contrastive.subcategory_steps=0",
         "model.alignment_head=cls", "validation.keep_best=null")  # fmt: skip
WARM = ("train.steps=2", "contrastive.first_steps=1", "contrastive.subcategory_steps=0", "validation.every=0",
        "validation.keep_best=null")  # fmt: skip
PEER = "plain Hugging Face recipe"


class Clock:
    """Seconds since it was made, without those spent in `paused`; ``reached`` when the target was first met."""

    def __init__(self, target: float) -> None:
        self.target, self.start, self.apart = target, time.perf_counter(), 0.0
        self.reached: float | None = None
        self.seen: list[tuple[float, float]] = []  # seconds and accuracy of each validation

    def validate(self, measure: Callable[[], float]) -> None:
        """Measure the accuracy beside the clock."""
        before = time.perf_counter()
        seconds = before - self.start - self.apart
        accuracy = measure()
        self.apart += time.perf_counter() - before
        self.seen.append((seconds, accuracy))
        if accuracy >= self.target and self.reached is None:
            self.reached = seconds


def configuration(store: Path, run: Path, seed: int, overrides: Sequence[str] = ()) -> Config:
    fixed = [f"data.store={store}", f"train.output={run}", f"train.seed={seed}", f"validation.every={EVERY}",
             "train.checkpoint_every=0"]  # fmt: skip
    return load_config(CONFIG, [*fixed, *overrides])


# Ours ----------------------------------------------------------------------------------------------------------------
def run_ours(config: Config, target: float) -> Clock:
    """`pretrain` until the target or the last step. Its validation is the engine's, with the clock around it."""
    clock = Clock(target)

    class Timed(Validation):
        def __call__(self, step: int) -> dict:
            clock.validate(lambda: super(Timed, self).__call__(step)["alignment_accuracy"])
            assert self.last is not None
            return self.last

        @property
        def exhausted(self) -> bool:
            return clock.reached is not None

        def tell(self, step: int) -> None:
            print(f"reached {target:g} at step {step}", flush=True)

    engines, train.Validation = train.Validation, Timed
    try:
        train.pretrain(config)
    finally:
        train.Validation = engines
    return clock


# The plain recipe ----------------------------------------------------------------------------------------------------
def plain_start(config: Config, device: torch.device) -> tuple[PaddedFashionBert, PairDataset, nn.Module]:
    """The plain model, the pairs it is trained on, and ours of the same weights."""
    store, directory = FeatureStore.open(Path(config.data.store)), Path(config.train.output)
    seed_everything(config.train.seed)
    tokenizer = load_tokenizer(find_tokenizer(config, store, directory))
    dataset = build_dataset(config, store, tokenizer, rank=0, world_size=1)
    ours = build_model(config, store, len(tokenizer))
    return PaddedFashionBert.from_ours(ours).to(device), dataset, ours.to(device)


def run_plain(config: Config, target: float, device: torch.device) -> Clock:
    clock = Clock(target)
    model, dataset, _ = plain_start(config, device)
    optimizer = build_optimizer(model, config.train, device)
    schedule = build_schedule(optimizer, config.train)
    held_out = HeldOutPairs(dataset, dataset.store.rows("validation"), config.validation.pairs)
    for step in range(1, config.train.steps + 1):
        loss, _ = model.train()(pad(dataset[step - 1][0]).to(device))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.train.gradient_clipping)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % config.validation.every == 0 or step == config.train.steps:
            clock.validate(lambda: accuracy(model, held_out, device))
        if clock.reached is not None:
            break
    return clock


@torch.inference_mode()
def accuracy(model: PaddedFashionBert, held_out: HeldOutPairs, device: torch.device) -> float:
    """Share of held-out pairs whose larger logit is the right one."""
    model.eval()
    right = 0
    for i in range(len(held_out)):
        batch = pad(held_out[i]).to(device)
        logits_B2 = model.cls.seq_relationship(model.bert.pooler(model.hidden(batch)))
        right += int((logits_B2.argmax(1) == batch.tia_label_B).sum())
    return right / held_out.pairs


def check_same_start(config: Config, device: torch.device) -> None:
    """AssertionError unless both models have the same losses on the first batch."""
    plain, dataset, ours = plain_start(config, device)
    batch = dataset[0][0]
    with torch.no_grad():
        theirs, mine = plain.eval()(pad(batch).to(device)), ours.eval()(batch.to(device))
    torch.testing.assert_close(mine.losses_T, theirs[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mine.loss, theirs[0], rtol=1e-4, atol=1e-5)


# The command ---------------------------------------------------------------------------------------------------------
def measure(
    home: Path, seeds: int, target: float, products: int, overrides: Sequence[str], plain: Sequence[str] = PLAIN
) -> dict[str, Any]:
    """The JSON. overrides: of the demo's configuration, of both; plain: of the plain recipe after them."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    draw(home, products=products, seed=0, queries=False)
    store = home / "store"
    # What is compiled or loaded once, DeepSpeed's helper and its modules, is not a run's.
    train.pretrain(configuration(store, home / "warm", 0, [*overrides, *WARM]))
    check_same_start(configuration(store, home / "check", 0, [*overrides, *plain]), device)
    clocks = []
    for seed in range(seeds):
        ours = run_ours(configuration(store, home / f"ours-{seed}", seed, overrides), target)
        theirs = run_plain(configuration(store, home / f"plain-{seed}", seed, [*overrides, *plain]), target, device)
        clocks.append((ours, theirs))
        print(f"seed {seed}: ours {told(ours)}, plain {told(theirs)}", flush=True)
    names = ("ours", "plain")
    curves = [{name: of.seen for name, of in zip(names, both, strict=True)} for both in clocks]
    return report(rows(clocks, target), device) | {"proofs": proofs(clocks, target), "curves": curves}


def told(clock: Clock) -> str:
    if clock.reached is None:
        return f"not reached, best {max(accuracy for _, accuracy in clock.seen):.3f}"
    return f"{clock.reached:.1f} s"


def rows(clocks: Sequence[tuple[Clock, Clock]], target: float) -> list[Row | Figure]:
    """The ratio over the seeds in which both reached the target; none where no seed has both."""
    both = [(ours.reached, plain.reached) for ours, plain in clocks if ours.reached and plain.reached]
    if not both:
        return []
    ratios = sorted(plain / ours for ours, plain in both)
    seconds = [statistics.median(of) for of in zip(*both, strict=True)]
    case, ratio = f"{target:g} of held-out alignment accuracy, drawn garments", statistics.median(ratios)
    return [Row(case, PEER, *seconds, "s", ratio, 1.0, ratio >= 1, [ratios[0], ratios[-1]])]


def proofs(clocks: Sequence[tuple[Clock, Clock]], target: float) -> list[dict[str, Any]]:
    """In how many seeds each reached it."""
    names = ("ours", PEER)
    reached = [sum(of[i].reached is not None for of in clocks) for i in range(2)]
    return [{"proof": f"{name}: reached {target:g}", "k": k, "n": len(clocks), "met": k == len(clocks)}
            for name, k in zip(names, reached, strict=True)]  # fmt: skip


def record(result: dict[str, Any], path: Path = RECORDS) -> None:
    """Add the result to the table of records. InputError where it has no ratio."""
    if not result["rows"]:
        raise InputError("--record: no seed in which both reached the target; nothing was added")
    before = read_json(path, "take it from git")["records"] if path.exists() else []
    row = result["rows"][0]
    one = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "commit": result["commit"],
        "machine": f"{result['device']}, {len(os.sched_getaffinity(0))} cores", "seconds": row["value"],
        "peer_seconds": row["peer_value"], "ratio": row["ratio"], "spread": row["spread"],
        "seeds": result["proofs"][0]["n"],
    }  # fmt: skip
    write_json(path, result | {"records": [*before, one]})


def main(argv: Sequence[str] | None = None) -> int:
    """0 when both reached the target by every seed, 1 when not; 2 on bad input."""
    description, _, epilog = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speedrun", description=description, epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each (default: %(default)s)")
    parser.add_argument("--plain-steps", type=int, metavar="N", help="of the plain recipe (default: the demo's)")
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument("--record", action="store_true", help=f"add the result to {RECORDS.name}, the table of records")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="change the configuration of both")
    args = parser.parse_args(argv)
    seeds = 1 if args.quick else args.seeds
    plain = PLAIN if args.plain_steps is None else (*PLAIN, f"train.steps={args.plain_steps}")
    try:
        if seeds < 1:
            raise InputError(f"--seeds: {seeds} is too few; give 1 or more")
        check_writable(args.json)
        with tempfile.TemporaryDirectory(prefix="speedrun-") as folder:
            result = measure(Path(folder), seeds, TARGET, PRODUCTS, args.overrides, plain)
        write_json(args.json, result)
        if args.record:
            record(result)
    except InputError as error:
        print(f"benchmarks.speedrun: error: {error}", file=sys.stderr)
        return 2
    for row in result["rows"]:
        print(f"{row['case']}: {row['value']:.1f} s, {row['peer']} {row['peer_value']:.1f} s, {row['ratio']:.2f} times")
    return 0 if all(proof["met"] for proof in result["proofs"]) else 1


if __name__ == "__main__":
    sys.exit(main())
