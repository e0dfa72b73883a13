"""Does this tree train as another commit's does, bit for bit? The guard of every change that is to change nothing.

    python -m benchmarks.same COMMIT          # `make same COMMIT=...`; exit status 0: the same, 1: not, 2: bad input

Both trees prepare the same photos, train 20 steps by each of `RUNS` and evaluate each. One run is embedded, indexed and
exported. Compared are the features, every logged number but the rates, every number of every checkpoint, the vectors,
the index and the exported weights, exactly. This tree also reads the other's store and models. Each tree is run through
its command line and by its own copy of this file, so that modules and settings may have other names in the two. What
the other commit gave is kept in build/same/ for the next comparison.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from benchmarks.tree import BUILD, CPU_ONLY, ROOT, copy_commit, environment, take_libraries
from fashionbert_fast.errors import InputError

PRODUCTS, STEPS = 120, 20
COLOURS = ("red", "green", "blue", "orange", "purple", "black")
GARMENTS = (("Apparel", "Shirt"), ("Apparel", "Dress"), ("Footwear", "Sandal"), ("Footwear", "Boot"))
SIZES = ("model.hidden_size=128", "model.heads=2", "model.layers=2", "model.intermediate_size=256",
         "model.vocab_size=200")  # fmt: skip
STEPWISE = (f"train.steps={STEPS}", "train.micro_batch_size=8", "train.lr=1e-3", "train.log_every=1",
            "train.checkpoint_every=10", "validation.every=10", "validation.pairs=12")  # fmt: skip
FIRST = "fp32"  # embedded, indexed and exported; the run with queries goes on from it
QUERIES = "queries"
# name -> (ranks, overrides on top of STEPWISE and, but for QUERIES, of SIZES); dropout is on everywhere, at its default
RUNS: dict[str, tuple[int, tuple[str, ...]]] = {
    FIRST: (1, ("train.zero_stage=0", "weighting.method=loss", "data.pairs=both")),
    "fp32 min_norm": (1, ("train.zero_stage=0", "weighting.method=min_norm", "weighting.normalise=norm")),
    "fp32 gradient, ZeRO-1": (1, ("train.zero_stage=1", "weighting.method=gradient", "data.negatives=subcategory")),
    "bf16": (1, ("train.zero_stage=0", "train.precision=bf16", "train.optimizer=lamb")),
    "bf16, ZeRO-1, 2 ranks x 2 micro-batches": (
        2, ("train.zero_stage=1", "train.precision=bf16", "train.gradient_accumulation_steps=2", "data.workers=1"),
    ),
    "bf16, ZeRO-2, 2 ranks": (2, ("train.zero_stage=2", "train.precision=bf16", "weighting.method=loss")),
    "bf16, ZeRO-3, 2 ranks": (2, ("train.zero_stage=3", "train.precision=bf16")),
    "contrastive": (
        1, ("train.zero_stage=0", "data.pairs=both", "model.alignment_head=pooled", "contrastive.first_steps=10",
            "contrastive.batch_size=16", "contrastive.weight=1"),
    ),
    QUERIES: (1, ("train.zero_stage=1", "queries.weight=1")),
}  # fmt: skip
INDICES = ("flat", "ivf")
RATES = ("samples_per_s", "tokens_per_s", "mfu", "throughput")  # what is measured, not computed
SOURCES = ("csrc", "CMakeLists.txt", "setup.py")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


# What each tree does with itself -------------------------------------------------------------------------------------
def write_catalogue(directory: Path) -> Path:
    """A CSV of products, a CSV of queries, and photos: a coloured shape each, so that there is something to learn."""
    directory.mkdir(parents=True)
    generator, queries = torch.Generator().manual_seed(0), []
    with (directory / "products.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "title", "category", "subcategory", "image", "split"])
        for i in range(PRODUCTS):
            colour = COLOURS[int(torch.randint(len(COLOURS), (), generator=generator))]
            category, garment = GARMENTS[i % len(GARMENTS)]
            x, y, width, height = torch.randint(8, 40, (4,), generator=generator).tolist()
            photo = Image.new("RGB", (96, 96), "white")
            draw = ImageDraw.Draw(photo)
            (draw.rectangle if i % 2 else draw.ellipse)((x, y, x + width, y + height), fill=colour)
            photo.save(directory / f"{i}.png")
            table.writerow([i, f"{colour} {garment.lower()} number {i % 17}", category, garment, f"{i}.png",
                            "train" if i % 10 else "validation"])  # fmt: skip
            queries.append((f"{garment.lower()} {colour}", i))
    with (directory / "queries.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("query", "id"), *queries])
    return directory / "products.csv"


def work(directory: Path) -> None:
    """Do everything by this tree's command line, into ``directory``; RuntimeError where a command fails."""
    catalogue = write_catalogue(directory / "catalogue")
    store = directory / "store"
    _command("prepare", str(catalogue), "--out", str(store), "--encoder", "random:0:16", "--grid", "4",
             "--patch-pixels", "24", "--queries", str(catalogue.with_name("queries.csv")))  # fmt: skip
    (directory / "empty.yaml").write_text("{}\n")
    for name, (ranks, overrides) in RUNS.items():
        run = directory / name
        core = (f"model.core={directory / FIRST}",) if name == QUERIES else SIZES
        _command("pretrain", "--config", str(directory / "empty.yaml"), f"data.store={store}", f"train.output={run}",
                 *core, *STEPWISE, *overrides, ranks=ranks)  # fmt: skip
        evaluate(run, store, run / "evaluation.json")
    first, vectors = str(directory / FIRST), str(directory / "vectors")
    _command("embed", "--checkpoint", first, "--data", str(store), "--out", vectors)
    for kind in INDICES:
        _command("index", vectors, "--out", str(directory / kind), "--kind", kind)
    _command("export", "--checkpoint", first, "--out", str(directory / "exported"))


def evaluate(run: Path, store: Path, json_path: Path) -> None:
    lists = ("--protocol", "queries") if run.name == QUERIES else ("--queries", "20", "--candidates", "11")
    _command("evaluate", "--checkpoint", str(run), "--data", str(store), "--split", "all", *lists,
             "--json", str(json_path))  # fmt: skip


def _command(*words: str, ranks: int = 1) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "fashionbert_fast", *words], capture_output=True, text=True,
        env=os.environ | ENVIRONMENT,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"fashionbert {' '.join(words)}\n{done.stdout[-1500:]}{done.stderr[-3000:]}")


# The two trees -------------------------------------------------------------------------------------------------------
def result_of(tree: Path, directory: Path) -> None:
    """Let the checkout at ``tree`` do its `work` into ``directory``, which is there only when all of it is done."""
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.same", "--work", str(partial)], cwd=tree, capture_output=True, text=True,
        env=environment(tree),
    )  # fmt: skip
    if done.returncode:
        raise InputError(f"{tree}: {done.stdout[-1500:]}{done.stderr[-3500:]}")
    shutil.rmtree(directory, ignore_errors=True)
    partial.rename(directory)


def checkout(commit: str, tree: Path) -> None:
    """The files of ``commit`` at ``tree``, with native libraries: this tree's, or built where their sources differ."""
    copy_commit(ROOT, commit, tree)
    if not (tree / "benchmarks" / "same.py").exists():
        raise InputError(f"{commit}: is older than benchmarks/same.py, by which it would be run; name a later commit")
    if subprocess.run(["git", "diff", "--quiet", commit, "--", *SOURCES], cwd=ROOT).returncode:
        subprocess.run(BUILD, cwd=tree, env=environment(tree, **CPU_ONLY), check=True, stdout=subprocess.DEVNULL)
    else:
        take_libraries(ROOT, tree)


def full_name(commit: str) -> str:
    """The full hash of ``commit``; InputError where there is none."""
    done = subprocess.run(["git", "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"], cwd=ROOT,
                          capture_output=True, text=True)  # fmt: skip
    if done.returncode:
        raise InputError(f"{commit}: no such commit of this checkout")
    return done.stdout.strip()


# Comparing -----------------------------------------------------------------------------------------------------------
def numbers(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every tensor and every plain value inside dicts, lists, tuples and objects, each with the path to it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(inner, f"{path}/{key}")
    elif isinstance(value, (list, tuple, set)):
        for i, inner in enumerate(value):
            yield from numbers(inner, f"{path}/{i}")
    elif isinstance(value, (torch.Tensor, int, float, str, bytes, bool, type(None))):
        yield path, value
    elif hasattr(value, "__dict__"):
        yield from numbers(vars(value), path)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and _bits(a).equal(_bits(b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


def _bits(x: torch.Tensor) -> torch.Tensor:
    return x.detach().contiguous().view(-1).view(torch.uint8)


def differences(ours: Any, theirs: Any) -> list[str]:
    """Paths at which two nested values differ."""
    a, b = dict(numbers(ours)), dict(numbers(theirs))
    return [
        path for path in sorted(a.keys() | b.keys()) if path not in a or path not in b or not _equal(a[path], b[path])
    ]


def _metrics(run: Path) -> list[dict]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in RATES} for record in records]


def _figures(path: Path) -> dict:
    left_out = ("checkpoint", "data", *RATES)
    return {key: value for key, value in json.loads(path.read_text()).items() if key not in left_out}


def _arrays(directory: Path) -> dict[str, Any]:
    """Every number of the files of tensors and of arrays below ``directory``, by file."""
    found: dict[str, Any] = {}
    for path in sorted(directory.glob("**/*")):
        name = str(path.relative_to(directory))
        if path.suffix == ".safetensors":
            found[name] = load_file(path)
        elif path.suffix == ".npy":
            found[name] = path.read_bytes()
    return found or {"nothing": str(directory)}  # which differs


def compare(ours: Path, theirs: Path) -> Iterator[tuple[str, list[str]]]:
    """(what was compared, where it differs) of the two trees' results."""
    store = "store/features.bin"
    yield "features", [] if (ours / store).read_bytes() == (theirs / store).read_bytes() else [store]
    for name in ("vectors", *INDICES, "exported"):
        yield name, differences(_arrays(ours / name), _arrays(theirs / name))
    for name in RUNS:
        a, b, evaluation = ours / name, theirs / name, "evaluation.json"
        yield f"{name}: {STEPS} steps", differences(_metrics(a), _metrics(b))
        yield f"{name}: checkpoints", differences(_arrays(a / "checkpoints"), _arrays(b / "checkpoints"))
        yield f"{name}: evaluation", differences(_figures(a / evaluation), _figures(b / evaluation))
        again = ours / name / "of_theirs.json"
        evaluate(theirs / name, theirs / "store", again)
        yield (
            f"{name}: their store and model, read here",
            differences(_figures(again), _figures(theirs / name / evaluation)),
        )


def main(argv: Sequence[str] | None = None) -> int:
    description, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.same", description=description, epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("commit", nargs="?", help="what to compare with")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.work is not None:
        work(args.work)
        return 0
    try:
        if args.commit is None:
            raise InputError("COMMIT: missing; name the commit to compare with")
        theirs = ROOT / "build" / "same" / full_name(args.commit)
        with tempfile.TemporaryDirectory(prefix="same-") as directory:
            if not theirs.exists():
                checkout(args.commit, Path(directory) / "tree")
                result_of(Path(directory) / "tree", theirs)
            ours = Path(directory) / "ours"
            result_of(ROOT, ours)
            results = dict(compare(ours, theirs))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    for what, places in results.items():
        shown = ", ".join(places[:3]) + (f" and {len(places) - 3} more" if len(places) > 3 else "")
        print(f"{'DIFFERS' if places else 'same':8}{what}{f': {shown}' if places else ''}")
    return 1 if any(results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
