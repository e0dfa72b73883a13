"""What the GPU suite runs, most valuable first: `benchmarks.gpu.gpu_suite` gives each part a process and a time limit.

A part is told to a `Teller` row by row, as it is measured. With ``dry`` a part does the same work on a CPU at toy
sizes; what only a GPU has is skipped by name.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import benchmarks.measure
from benchmarks.gpu.gpu_cases import cases_of, worst_error
from benchmarks.measure import Figure, Row
from benchmarks.run import SUITES, parts
from benchmarks.steps.workload import drawn_manifest
from fashionbert_fast.operators import OPERATORS

BF16_TOLERANCE = 0.02  # of a loss, bf16 on the device against float32 on the CPU, mean of 10 steps


class Skipped(Exception):
    """This machine has not what the part needs."""


@dataclass
class Teller:
    """Appends what a part finds to a file of JSON lines, at once: nothing told is lost."""

    path: Path

    def row(self, row: Row | Figure) -> None:
        self._append({"row": asdict(row)})

    def proof(self, name: str, met: bool, detail: str = "") -> None:
        self._append(
            {"proof": {"proof": name, "k": int(met), "n": 1, "met": met} | ({"detail": detail} if detail else {})}
        )

    def _append(self, line: dict) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


@dataclass(frozen=True)
class Part:
    """tells: what is known after it. seconds: its limit. run: given a teller, the device and whether it is dry."""

    name: str
    tells: str
    seconds: int
    run: Callable[[Teller, torch.device, bool], None]


def _needs_gpu(dry: bool, what: str) -> None:
    if dry:
        raise Skipped(f"{what} needs a GPU")


# Kernels -------------------------------------------------------------------------------------------------------------
def _kernel(operator: str) -> Callable[[Teller, torch.device, bool], None]:
    def run(tell: Teller, device: torch.device, dry: bool) -> None:
        for case in cases_of(operator):
            try:
                name, error = worst_error(case, device)
            except RuntimeError as failure:
                tell.proof(case.name, False, str(failure)[:500])
                continue
            tell.proof(case.name, error <= 1, f"{name} is {error:.2f} of what is accepted")

    return run


# Training ------------------------------------------------------------------------------------------------------------
def write_store(directory: Path, products: int = 256, size: int = 64) -> Path:
    """A feature store of drawn patches, each with a direction of its title's words in it: something to learn."""
    from fashionbert_fast.catalogue.product import Product
    from fashionbert_fast.features.store import StoreWriter

    colours, garments = ("red", "blue", "green", "black"), ("shirt", "boot", "dress", "bag")
    generator = torch.Generator().manual_seed(0)
    of_colour, of_garment = torch.randn(2, 4, size, generator=generator)
    drawn = torch.randint(4, (products, 2), generator=generator).tolist()
    listed = [
        Product(str(i), f"{colours[c]} {garments[g]} number {i}", "wear", garments[g], Path(f"{i}.jpg"), "train")
        for i, (c, g) in enumerate(drawn)
    ]
    noise = torch.randn(products, 16, size, generator=generator)
    features = torch.stack([of_colour[c] + of_garment[g] for c, g in drawn])[:, None] + noise
    with StoreWriter(directory, patches=16, feature_size=size) as writer:
        writer.append(listed, features.clamp_min(0))
        writer.commit(drawn_manifest(4, 32, size))
    return directory


SMALL = (
    "model.layers=2", "model.hidden_size=128", "model.heads=4", "model.intermediate_size=512", "model.vocab_size=400",
    "model.hidden_dropout=0", "model.attention_dropout=0", "model.patch_dropout=0", "train.micro_batch_size=32",
    "train.lr=1e-3", "train.log_every=1", "validation.every=0",
)  # fmt: skip


def train(directory: Path, store: Path, steps: int, *overrides: str, dry: bool, on_cpu: bool = False) -> list[dict]:
    """The metrics of a run of the small model in a process of its own. on_cpu: which sees no GPU."""
    words = [
        "pretrain", "--config", str(_empty_config(directory)), f"data.store={store}", f"train.output={directory}",
        f"train.steps={steps}", *SMALL, *overrides,
    ]  # fmt: skip
    # A process that has looked for a GPU must not fork; without one it may, and need not import everything again.
    context = multiprocessing.get_context("fork" if dry else "spawn")
    process = context.Process(target=_fashionbert, args=(words, on_cpu))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"training ended with {process.exitcode}: what it said is above")
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def _fashionbert(words: list[str], on_cpu: bool) -> None:
    if on_cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from fashionbert_fast.cli import main

    sys.exit(main(words))


def _empty_config(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "settings.yaml"
    path.write_text("{}\n")
    return path


@contextmanager
def _work(dry: bool) -> Iterator[tuple[Path, Path, int]]:
    """A directory, a store in it, and how many steps."""
    if dry:
        torch.set_num_threads(1)  # what a library's pool of threads holds does not survive a fork
    with tempfile.TemporaryDirectory() as name:
        yield Path(name), write_store(Path(name) / "store"), 12 if dry else 50


def _training(tell: Teller, device: torch.device, dry: bool) -> None:
    with _work(dry) as (directory, store, steps):
        mine = train(directory / "bf16", store, steps, "train.precision=bf16", "train.zero_stage=1", dry=dry)
        tell.row(Figure("small model, bf16 under ZeRO-1", mine[-1]["samples_per_s"], "samples/s"))
        reference = train(directory / "fp32", store, steps, "train.precision=fp32", dry=dry, on_cpu=True)
    for task in ("mlm", "tia", "mpm"):
        for start in range(0, steps - 9, 10):
            a, b = (sum(r["losses"][task] for r in run[start : start + 10]) / 10 for run in (mine, reference))
            name = f"training, {task} of steps {start + 1} to {start + 10} as on the CPU in float32"
            tell.proof(name, abs(a - b) <= BF16_TOLERANCE * abs(b), f"{a:.5f} against {b:.5f}")
    first, last = mine[0]["loss"], mine[-1]["loss"]
    tell.proof("training, the loss falls", last < first, f"{first:.4f} to {last:.4f}")


def _determinism(tell: Teller, device: torch.device, dry: bool) -> None:
    with _work(dry) as (directory, store, _):
        runs = [train(directory / name, store, 10, "train.precision=bf16", dry=dry) for name in ("once", "again")]
    losses = [[record["losses"] for record in run] for run in runs]
    tell.proof("the same seed trains bit for bit the same", losses[0] == losses[1])


def _variant(name: str, setting: str) -> Callable[[Teller, torch.device, bool], None]:
    """Training with a setting beside training without it: how near the losses, how much faster."""

    def run(tell: Teller, device: torch.device, dry: bool) -> None:
        _needs_gpu(dry, name)
        sizes = ("model.layers=12", "model.hidden_size=768", "model.heads=12", "model.intermediate_size=3072",
                 "train.micro_batch_size=64", "train.precision=bf16", "train.log_every=10")  # fmt: skip
        with _work(dry) as (directory, store, steps):
            plain = train(directory / "plain", store, steps, *sizes, dry=dry)
            mine = train(directory / "variant", store, steps, *sizes, setting, dry=dry)
        a, b = mine[-1]["samples_per_s"], plain[-1]["samples_per_s"]
        tell.row(
            Row(f"{name}, BERT-base at 64 pairs", "ours without", a, b, "samples/s", a / b, 1.0, a >= b, [a / b] * 2)
        )
        a, b = mine[-1]["loss"], plain[-1]["loss"]
        tell.proof(f"{name}, the loss of step {steps}", abs(a - b) <= 0.05 * abs(b), f"{a:.5f} against {b:.5f}")

    return run


# Measurements --------------------------------------------------------------------------------------------------------
def _step(size: str, *peers: str) -> Callable[[Teller, torch.device, bool], None]:
    def run(tell: Teller, device: torch.device, dry: bool) -> None:
        only = peers[:1] if dry else peers
        for row in parts("step", True, only, size="toy" if dry else size, store=None)["step"](device):
            tell.row(row)

    return run


# Operator -> sizes of its measurement's modules for a rehearsal.
TOY = {
    "bias_gelu": {"ops.bench_bias_gelu": {"ROWS": {"cpu": 64}}},
    "dropout_add_layer_norm": {"ops.bench_dropout_add_layer_norm": {"ROWS": {"cpu": 64}}},
    "linear_cross_entropy": {
        "ops.linear_loss": {"ROWS": {"cpu": (64,)}},
        "ops.bench_linear_cross_entropy": {"V": 1000},
    },
    "linear_patch_kld": {"ops.linear_loss": {"ROWS": {"cpu": (64, 64)}}},
    "masked_patch_embed": {"ops.bench_masked_patch_embed": {"ROWS": {"cpu": (128,)}}},
    "packed_attention": {"ops.bench_packed_attention": {"SEQUENCES": {"cpu": (4,)}}},
    "patch_kld": {"ops.bench_patch_kld": {"ROWS": {"cpu": (64,)}}},
    "weighted_step": {"steps.bench_weighted_step": {"QUICK": (1, 2)}},
}


def _operator(name: str) -> Callable[[Teller, torch.device, bool], None]:
    def run(tell: Teller, device: torch.device, dry: bool) -> None:
        if dry:  # that it runs, not how long it takes
            benchmarks.measure.SHORTEST = True
            for module, sizes in TOY.get(name, {}).items():
                vars(importlib.import_module(f"benchmarks.{module}")).update(sizes)
            torch.compile = lambda function, **_: function  # pyright: ignore[reportAttributeAccessIssue]
        for row in parts("ops", True, [name])[name](device):
            tell.row(row)

    return run


def _ceilings(tell: Teller, device: torch.device, dry: bool) -> None:
    from fashionbert_fast.profiling.roofline import measure_ceilings

    ceilings = measure_ceilings(device, quick=dry)
    for dtype, rate in ceilings.matmul.items():
        tell.row(Figure(f"{dtype} matmul", rate / 1e12, "TFLOP/s"))
    tell.row(Figure("copy", ceilings.bandwidth / 1e9, "GB/s"))


def _sanitizer(tell: Teller, device: torch.device, dry: bool) -> None:
    _needs_gpu(dry, "compute-sanitizer")
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        raise Skipped("compute-sanitizer is not installed")
    for check in ("memcheck", "racecheck"):
        for operator in (o for o in OPERATORS if o.gpu == "CUDA C++"):
            with tempfile.TemporaryDirectory() as name:
                lines = Path(name) / "lines"
                command = [tool, f"--tool={check}", "--error-exitcode=99", sys.executable, "-m",
                           "benchmarks.gpu.gpu_suite", "--part", f"kernel {operator.name}", "--lines",
                           str(lines)]  # fmt: skip
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            tell.proof(f"{check}: {operator.name}", done.returncode == 0, done.stdout[-300:] if done.returncode else "")


def _profile(tell: Teller, device: torch.device, dry: bool) -> None:
    """`fashionbert profile`; its rows, and its files beside the suite's."""
    from fashionbert_fast.cli import main

    sizes = [word for word in SMALL if dry or not word.startswith("model.")]
    if not dry:
        sizes += ["train.precision=bf16", "train.micro_batch_size=256"]
    with _work(dry) as (directory, store, _):
        out = tell.path.parent / "profile"
        status = main(["profile", "--config", str(_empty_config(directory / "settings")), f"data.store={store}",
                       f"train.output={out}", *sizes, "--warmup", "3", "--steps", "3"])  # fmt: skip
        if status:
            raise RuntimeError(f"fashionbert profile ended with {status}")
    breakdown = json.loads((out / "profile.json").read_text())
    for row in breakdown["rows"]:
        if not row["case"].startswith("kernel "):
            tell.row(Figure(f"profile, {row['case']}", row["value"], row["unit"]))
    explained = breakdown["breakdown"]["explained"]
    tell.proof("profile names 95% of the step's wall time", explained >= 0.95, f"{explained:.3f}")
    for row in json.loads((out / "roofline.json").read_text())["rows"]:
        tell.row(Figure(f"roofline, {row['case']}", row["value"], row["unit"]))


PARTS = (
    *(Part(f"kernel {o.name}", f"{o.name} is right on {len(cases_of(o.name))} shapes, against float64", 60,
           _kernel(o.name)) for o in OPERATORS),
    Part("training", "50 steps in bf16 under ZeRO-1 learn what float32 on a CPU learns", 150, _training),
    Part("step base", "a step of BERT-base beside Hugging Face's, bucketed and compiled", 240,
         _step("base", "d-weights", "d", "c")),
    Part("ceilings", "matmul rates and copy bandwidth of this device", 30, _ceilings),
    *(Part(f"op {name}", "an operator beside plain PyTorch and torch.compile", 60,
           _operator(name)) for name in SUITES["ops"]),
    Part("graphs", "CUDA graphs of the encoder: the same losses, how much faster", 120,
         _variant("CUDA graphs", "train.cuda_graphs=true")),
    Part("fp8", "FP8 matmuls: near losses, how much faster", 120, _variant("FP8", "train.fp8=true")),
    Part("sanitizer", "compute-sanitizer's memcheck and racecheck on every CUDA operator", 300, _sanitizer),
    Part("determinism", "two runs of one seed are equal", 90, _determinism),
    Part("profile", "where the step's time goes, and the roofline", 120, _profile),
    Part("step base all", "the other peers of BERT-base, and what DeepSpeed costs", 550,
         _step("base", "b", "b-weights", "d-compiled-weights", "d-compiled", "a-bf16", "zero-1", "zero-2",
               "a-float32")),
    Part("step large", "a step of BERT-large beside Hugging Face's", 400, _step("large", "d-weights", "b", "c")),
)  # fmt: skip
