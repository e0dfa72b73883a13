"""`fashionbert demo`: draw a catalogue, prepare it, pre-train, evaluate, report."""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

from fashionbert_fast.errors import InputError

EPILOG = """examples:
  fashionbert demo --out demo_out
  fashionbert demo --out demo_out --seed 1 --overwrite
  fashionbert demo --out demo_out train.steps=3000 weighting.method=min_norm

Leaves in DIR: catalogue/ (drawn photos and styles.csv), store/, run/ (checkpoints, metrics.jsonl, curves),
evaluation.json, queries.png and report.html."""

CONFIG = Path(__file__).parent / "demo.yaml"
ENCODER = "random"  # the drawn photos need no ImageNet: a seeded random ResNet tells colours and patterns apart
MARK = ".fashionbert-demo"  # what --overwrite may remove


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where everything goes")
    parser.add_argument("--products", type=int, default=3648, help="products to draw (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=300, help="held-out queries to rank (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing, the training and the evaluation")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier demo in DIR")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="change the run's configuration")


def _fresh_directory(out: Path, overwrite: bool) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not (out / MARK).exists():
            raise InputError(f"{out}: exists and is no demo's directory; choose another --out")
        if not overwrite:
            raise InputError(f"{out}: holds an earlier demo; add --overwrite or choose another --out")
        shutil.rmtree(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / MARK).touch()
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error


class _Stages:
    """Announces each stage and remembers how long it took."""

    def __init__(self) -> None:
        self.seconds: list[tuple[str, float]] = []
        self.start = time.perf_counter()

    def done(self, what: str) -> None:
        now = time.perf_counter()
        self.seconds.append((what, now - self.start))
        print(f"  {what}: {now - self.start:.0f} s", flush=True)
        self.start = now

    @property
    def total(self) -> float:
        return sum(seconds for _, seconds in self.seconds)


def run(args: argparse.Namespace) -> int:
    from fashionbert_fast.config import load_config

    stages = _Stages()
    out: Path = args.out
    fixed = [f"data.store={out / 'store'}", f"train.output={out / 'run'}", f"train.seed={args.seed}"]
    config = load_config(CONFIG, [*args.overrides, *fixed])
    _fresh_directory(out, args.overwrite)

    from fashionbert_fast.demo.catalogue import write_catalogue

    print(f"fashionbert demo: {args.products} products, into {out}", flush=True)
    write_catalogue(out / "catalogue", products=args.products, seed=args.seed)
    stages.done("drew the catalogue")

    from fashionbert_fast.data.prepare import prepare

    report = prepare(out / "catalogue", out / "store", encoder=ENCODER)
    stages.done(f"prepared {report.products} products")

    from fashionbert_fast.engine.loop import pretrain

    pretrain(config)
    stages.done(f"pre-trained {config.train.steps} steps under DeepSpeed")
    result = _evaluate_and_report(out, args, config, stages)
    _conclude(out, result, stages)
    return 0


def _evaluate_and_report(out: Path, args: argparse.Namespace, config, stages: _Stages) -> dict:
    from fashionbert_fast.data.store import FeatureStore
    from fashionbert_fast.demo.report import choose_examples, plot_queries, text_to_image_examples, write_report
    from fashionbert_fast.evaluation.protocols import DEFAULT_CANDIDATES, candidate_lists, score_lists, summarise
    from fashionbert_fast.evaluation.run import load_scorer
    from fashionbert_fast.files import write_json

    store = FeatureStore.open(out / "store")
    rows = store.rows("validation")
    scorer, _ = load_scorer(out / "run", store, out / "store")
    lists = candidate_lists(
        store, rows, protocol="fashionbert", queries=args.queries, candidates=DEFAULT_CANDIDATES, seed=args.seed
    )
    scored = score_lists(lists, rows, scorer.score)
    result = summarise(store, scored, protocol="fashionbert", seed=args.seed)
    write_json(out / "evaluation.json", result)
    stages.done(f"evaluated {result['queries']} queries in both directions")
    plot_queries(choose_examples(text_to_image_examples(store, scored, out / "catalogue"), 5), out / "queries.png")
    for name in ("losses.png", "weights.png"):
        shutil.copy(out / "run" / name, out / name)
    model = config.model
    summary = [
        ("products", f"{len(store)} drawn, {len(rows)} of them held out"),
        ("patches", f"{store.manifest.grid} x {store.manifest.grid}, {store.manifest.encoder['name']} encoder"),
        ("core", f"{model.layers} layers x {model.hidden_size}, from scratch"),
        (
            "training",
            f"{config.train.steps} steps, weighting {config.weighting.method}, ZeRO {config.train.zero_stage}",
        ),
        *((what, f"{seconds:.0f} s") for what, seconds in stages.seconds),
    ]
    write_report(out, result, summary)
    stages.done("wrote the report")
    return result


def _conclude(out: Path, result: dict, stages: _Stages) -> None:
    from rich.console import Console

    from fashionbert_fast.evaluation.run import table

    Console().print(table(result))
    print(f"{stages.total:.0f} s in all; open {out / 'report.html'}")
