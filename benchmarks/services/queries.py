"""Does continuing with queries teach a model to find items? On drawn garments with what shoppers ask for: Recall@10 of
queries of held-out products, before and after, by seeds; and after as many steps of the same without queries.

python -m benchmarks.services.queries --json queries.json
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.measure import Figure, Row, report
from fashionbert_fast.config import load_config
from fashionbert_fast.demo.run import CONFIG, draw, go_on
from fashionbert_fast.engine.train import pretrain
from fashionbert_fast.errors import InputError
from fashionbert_fast.evaluation.ranking.query_to_item import evaluate_queries
from fashionbert_fast.files import check_writable, write_json

SEEDS = (0, 1, 2)
FIGURE, TARGET = "R@10", 2.0
START, CONTROL, OURS = "run", "without", "queries-run"
PEERS = {START: "the checkpoint it starts from", CONTROL: "as many steps without queries"}


def measure_seed(home: Path, seed: int, products: int, steps: int, more: int) -> dict[str, dict]:
    """What `evaluate_queries` finds of the three, of catalogue, model and order of that seed."""
    draw(home, products=products, seed=seed, queries=True)
    fixed = [f"data.store={home / 'store'}", f"train.output={home / START}", f"train.seed={seed}"]
    pretrain(load_config(CONFIG, [*fixed, f"train.steps={steps}", "train.log_every=100"]))
    for name, weight in ((OURS, 1), (CONTROL, 0)):
        go_on(home, name, seed, f"queries.weight={weight}", f"train.steps={more}", "train.log_every=100")
    return {name: evaluate_queries(home / name, home / "store") for name in (START, CONTROL, OURS)}


def rows(found: dict[int, dict[str, dict]], what: str) -> list[Row | Figure]:
    """A row a peer, of means over seeds, a peer below chance counting as chance; then every figure of every seed."""
    recall = {name: [of_seed[name]["query_to_item"][FIGURE] for of_seed in found.values()] for name in (*PEERS, OURS)}
    case, ours = f"{FIGURE} of queries of held-out products, {what}", statistics.mean(recall[OURS])
    listed: list[Row | Figure] = []
    chance = [of_seed[OURS]["chance"][FIGURE] for of_seed in found.values()]
    for name, peer in PEERS.items():
        floored = [max(pair) for pair in zip(recall[name], chance, strict=True)]
        ratios = sorted(a / b for a, b in zip(recall[OURS], floored, strict=True))
        ratio, theirs = ours / statistics.mean(floored), statistics.mean(recall[name])
        met = ratios[0] >= TARGET  # every seed
        listed.append(Row(case, peer, ours, theirs, "share", ratio, TARGET, met, [ratios[0], ratios[-1]]))
    for seed, of_seed in found.items():
        for name, result in of_seed.items():
            said = PEERS.get(name, "continued with queries")
            listed += [Figure(f"seed {seed}, {said}: {figure}", value, "share")
                       for figure, value in result["query_to_item"].items()]  # fmt: skip
    return listed


def main(argv: list[str] | None = None) -> int:
    """0 when measured, whether met or not; 2 on bad input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.services.queries", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="one seed, fewer steps")
    args = parser.parse_args(argv)
    products, steps, more = 3648, *((400, 200) if args.quick else (600, 400))
    folder = Path(tempfile.mkdtemp(prefix="queries-"))
    try:
        check_writable(args.json)
        found = {seed: measure_seed(folder / str(seed), seed, products, steps, more)
                 for seed in (SEEDS[:1] if args.quick else SEEDS)}  # fmt: skip
    except InputError as error:
        print(f"benchmarks.services.queries: error: {error}", file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(folder)
    what = f"{more} steps after {steps}, {len(found)} seed{'s' * (len(found) > 1)}"
    result = report(rows(found, what), torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    write_json(args.json, result)
    for row in result["rows"]:
        if "peer" in row:
            print(f"{'met   ' if row['met'] else 'MISSED'} {row['value']:.3f}, {row['peer_value']:.3f} {row['peer']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
