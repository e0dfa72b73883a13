"""The whole job on drawn garments: draw a catalogue, prepare it, pre-train, evaluate, report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fashionbert_fast.config import Config, load_config
from fashionbert_fast.demo.garments.catalogue import KINDS, VALIDATION_PER_SUBCATEGORY, write_catalogue
from fashionbert_fast.demo.report import choose_examples, plot_queries, text_to_image_examples, write_report
from fashionbert_fast.engine.train import pretrain
from fashionbert_fast.errors import InputError
from fashionbert_fast.evaluation.ranking.protocols import DEFAULT_CANDIDATES, candidate_lists, score_lists, summarise
from fashionbert_fast.evaluation.ranking.query_to_item import evaluate_queries
from fashionbert_fast.evaluation.ranking.query_to_item import table as queries_table
from fashionbert_fast.evaluation.reports.table import table
from fashionbert_fast.evaluation.run import load_scorer
from fashionbert_fast.features.prepare import PrepareReport, prepare
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.files import write_json

CONFIG, ASKED_CONFIG = (Path(__file__).parent / name for name in ("demo.yaml", "queries.yaml"))
ENCODER = "random"  # the drawn photos need no ImageNet: a seeded random ResNet tells colours and patterns apart
MARK = ".fashionbert-demo"  # what --overwrite may remove


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


def _check_products(products: int, config: Config) -> None:
    """InputError where those not held out would not fill a step's batch, before anything is written."""
    t, c = config.train, config.contrastive
    largest = max(t.micro_batch_size, c.batch_size if c.first_steps else 0)
    held_out, batch = VALIDATION_PER_SUBCATEGORY * len(KINDS), largest * t.gradient_accumulation_steps
    if products - held_out < batch:
        raise InputError(
            f"--products {products}: {held_out} are held out and a step trains on {batch}; ask for {held_out + batch} "
            "or more"
        )


def run_demo(
    out: Path, *, products: int, queries: int, seed: int, overwrite: bool, overrides: Sequence[str],
    shoppers: bool = False,
) -> None:  # fmt: skip
    """Everything into ``out``. InputError where that holds something else, or an override is wrong.

    shoppers: draw what they ask for as well, and go on with it.
    """
    stages = _Stages()
    fixed = [f"data.store={out / 'store'}", f"train.output={out / 'run'}", f"train.seed={seed}"]
    config = load_config(CONFIG, [*overrides, *fixed])
    _check_products(products, config)
    _fresh_directory(out, overwrite)
    print(f"fashionbert demo: {products} products, into {out}", flush=True)
    report = draw(out, products=products, seed=seed, queries=shoppers)
    stages.done(f"drew and prepared {report.products} products")
    pretrain(config)
    stages.done(f"pre-trained {config.train.steps} steps under DeepSpeed")
    result = _evaluate_and_report(out, queries, seed, config, stages)
    Console().print(table(result))
    if shoppers:
        go_on(out, "queries-run", seed)
        found = {name: evaluate_queries(out / name, out / "store") for name in ("run", "queries-run")}
        write_json(out / "queries.json", found)
        stages.done("went on with queries")
        for name in found:
            print(f"{out / name}:")
            Console().print(queries_table(found[name]))
    print(f"{stages.total:.0f} s in all; open {out / 'report.html'}")


def draw(out: Path, *, products: int, seed: int, queries: bool) -> PrepareReport:
    """The catalogue, with or without what shoppers ask for, and its store."""
    catalogue = write_catalogue(out / "catalogue", products=products, seed=seed, queries=queries)
    return prepare(catalogue, out / "store", encoder=ENCODER, queries=catalogue / "queries.csv" if queries else None)


def go_on(out: Path, name: str, seed: int, *overrides: str) -> None:
    """Train on from ``out``/run with queries, into ``out``/``name``."""
    fixed = [f"model.core={out / 'run'}", f"data.store={out / 'store'}", f"train.output={out / name}"]
    pretrain(load_config(ASKED_CONFIG, [*overrides, *fixed, f"train.seed={seed}"]))


def _evaluate_and_report(out: Path, queries: int, seed: int, config: Config, stages: _Stages) -> dict:
    store = FeatureStore.open(out / "store")
    rows = store.rows("validation")
    scorer, _ = load_scorer(out / "run", store, out / "store")
    lists = candidate_lists(
        store, rows, protocol="fashionbert", queries=queries, candidates=DEFAULT_CANDIDATES, seed=seed
    )
    scored = score_lists(lists, rows, scorer.score)
    result = summarise(store, scored, protocol="fashionbert", seed=seed)
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
