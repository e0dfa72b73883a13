"""Step time against the number of GPUs: what a rank computes, what it sends at each ZeRO stage, what feeds it.

    python -m benchmarks.models.cluster --json benchmarks/results/cluster.json    # checks it on gloo, then draws it

step = max(compute, feed) + collectives, since `engine/zero/flat.py` sends after the backward and overlaps nothing.

A collective of S bytes over n ranks by a ring, each step of which takes alpha + bytes / beta (Thakur, Rabenseifner and
Gropp, "Optimization of collective communication operations in MPICH", 2005):
    all-reduce                      2 (n - 1) alpha + 2 (n - 1) / n S / beta
    reduce-scatter, all-gather        (n - 1) alpha +   (n - 1) / n S / beta
Over nodes of g GPUs, as NCCL does it: reduce-scatter in the node, the collective among nodes on S / g by each GPU's own
network card, all-gather in the node.

On gloo alpha and beta are fitted at some sizes and the time predicted at others. For GPUs every figure is ASSUMED, from
data sheets, until a measurement replaces it: each input of the JSON says which.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.measure import report
from fashionbert_fast.data.batch import StepCounts
from fashionbert_fast.files import check_writable, write_json

STAGES = (0, 1, 2)
GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
FIT = (2**20, 2**22, 2**24, 2**25)  # bytes: a step's vectors are megabytes at least
PREDICT = (3 * 2**20, 2**23, 3 * 2**23)  # none of those
TOLERANCE = 0.5  # of a predicted time; processes share two cores
COUNTS_BYTES, LOSSES_BYTES, NORM_BYTES = 4 * len(StepCounts._fields), 12, 4


@dataclass(frozen=True)
class Link:
    """alpha: seconds a step of the ring. beta: bytes/s, one way."""

    alpha: float
    beta: float


@dataclass(frozen=True)
class Cluster:
    """A node's GPUs, and the links in it and out of it (of each GPU)."""

    node: int
    inside: Link
    outside: Link


# 8 H100 by NVLink 4 (450 GB/s one way a GPU), each with a 400 Gb/s InfiniBand card; 80% of either is reached.
DGX_H100 = Cluster(8, Link(3e-6, 0.8 * 450e9), Link(8e-6, 0.8 * 50e9))


def sent(stage: int, groups: list[int], itemsize: int, micro_batches: int) -> list[tuple[str, int]]:
    """(collective, bytes of the whole vector) of one optimizer step, in order, as engine/zero/flat.py sends them.

    Args:
        groups: elements of each parameter group laid flat, padding included. itemsize: bytes of a weight's dtype.
    """
    found = [("all_reduce", COUNTS_BYTES), *[("all_reduce", LOSSES_BYTES)] * micro_batches]
    vectors = [size * itemsize for size in groups]
    if stage == 0:
        return found + [("all_reduce", size) for size in vectors]
    times = micro_batches if stage == 2 else 1
    found += [("reduce_scatter", size) for _ in range(times) for size in vectors]
    return [*found, ("all_reduce", NORM_BYTES), *(("all_gather", size) for size in vectors)]


def ring(collective: str, size: float, ranks: int, link: Link) -> float:
    """Seconds by the formula above."""
    rounds = (2 if collective == "all_reduce" else 1) * (ranks - 1)
    return rounds * link.alpha + rounds / ranks * size / link.beta


def collective_seconds(collective: str, size: float, gpus: int, cluster: Cluster) -> float:
    """A ring in one node; over nodes, as the module says."""
    if gpus <= cluster.node:
        return ring(collective, size, gpus, cluster.inside)
    nodes, part = gpus // cluster.node, size / cluster.node
    across = ring(collective, part, nodes, cluster.outside)
    if collective == "all_reduce":
        inside = 2 * ring("all_gather", size, cluster.node, cluster.inside)
    else:
        inside = ring(collective, size, cluster.node, cluster.inside)
    return inside + across


@dataclass(frozen=True)
class Load:
    """A rank's step. compute: seconds of all its micro-batches, optimizer included. feed: seconds a loader process
    takes to assemble them. workers: of those processes."""

    groups: list[int]
    itemsize: int
    micro_batches: int
    compute: float
    feed: float
    workers: int


def step_seconds(load: Load, stage: int, gpus: int, cluster: Cluster) -> float:
    """Seconds of an optimizer step."""
    messages = sent(stage, load.groups, load.itemsize, load.micro_batches) if gpus > 1 else []
    talk = sum(collective_seconds(name, size, gpus, cluster) for name, size in messages)
    return max(load.compute, load.feed / load.workers) + talk


def bert_base_groups() -> list[int]:
    """Elements of BERT-base FashionBERT's two parameter groups, with and without weight decay."""
    from fashionbert_fast import FashionBertConfig, FashionBertForPreTraining

    with torch.device("meta"):
        model = FashionBertForPreTraining(FashionBertConfig())
    decays = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    return [decays, sum(p.numel() for p in model.parameters()) - decays]


# gloo ----------------------------------------------------------------------------------------------------------------
def _run_collective(name: str, size: int, ranks: int):
    """A call of torch's collective on a float32 vector of ``size`` bytes."""
    whole = torch.zeros(-(-size // 4 // ranks) * ranks)
    part = torch.zeros(len(whole) // ranks)
    calls = {
        "all_reduce": lambda: dist.all_reduce(whole),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(part, whole),
        "all_gather": lambda: dist.all_gather_into_tensor(whole, part),
    }
    return calls[name]


def _timed(name: str, size: int, ranks: int, repeats: int) -> float:
    call, times = _run_collective(name, size, ranks), []
    for _ in range(repeats + 2):
        dist.barrier()
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def _sweep(path: Path, repeats: int) -> None:
    """Of this process group: seconds of each collective at each size; rank 0 writes them."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    ranks = dist.get_world_size()
    names = ("all_reduce", "reduce_scatter", "all_gather")
    found = {name: {size: _timed(name, size, ranks, repeats) for size in (*FIT, *PREDICT)} for name in names}
    if dist.get_rank() == 0:
        write_json(path, found)
    dist.barrier()
    dist.destroy_process_group()


def sweep(ranks: int, repeats: int) -> dict[str, dict[int, float]]:
    """Seconds of each collective at each size, over ``ranks`` gloo processes on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sweep.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}",
                   "-m", "benchmarks.models.cluster", "--sweep", str(path), "--repeats", str(repeats)]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=Path(__file__).parents[2], check=True, capture_output=True, env=environment)
        return {name: {int(s): t for s, t in times.items()} for name, times in json.loads(path.read_text()).items()}


def fit(collective: str, seconds: dict[int, float], ranks: int) -> Link:
    """alpha and beta of the ring's formula, by least squares of the relative error at the sizes of `FIT`."""
    rounds = (2 if collective == "all_reduce" else 1) * (ranks - 1)
    rows = torch.tensor([[rounds / seconds[s], rounds / ranks * s / seconds[s]] for s in FIT], dtype=torch.float64)
    alpha, per_byte = torch.linalg.lstsq(rows, torch.ones(len(FIT), 1, dtype=torch.float64)).solution.flatten().tolist()
    return Link(max(alpha, 0.0), 1 / max(per_byte, 1e-15))


def check_on_gloo(ranks: int, repeats: int) -> list[dict]:
    """Proofs: a step's collectives at each ZeRO stage, timed at sizes that nothing was fitted to."""
    measured = sweep(ranks, repeats)
    links = {name: fit(name, times, ranks) for name, times in measured.items()}
    proofs = []
    for stage in STAGES:
        errors = []
        for size in PREDICT:
            messages = [name for name, bytes_ in sent(stage, [size // 4], 4, 2) if bytes_ == size]
            predicted = sum(ring(name, size, ranks, links[name]) for name in messages)
            seen = sum(measured[name][size] for name in messages)
            errors.append(abs(predicted / seen - 1))
        k = sum(error <= TOLERANCE for error in errors)
        name = f"gloo, {ranks} ranks, ZeRO-{stage}: the step's collectives within {TOLERANCE:.0%} of the prediction"
        proofs.append({"proof": name, "k": k, "n": len(errors), "met": k == len(errors), "worst": max(errors)})
    return proofs


# The picture ---------------------------------------------------------------------------------------------------------
def curves(load: Load, cluster: Cluster) -> dict[str, list[float]]:
    """ZeRO stage -> seconds a step on each of `GPUS`, every GPU with the same batch (weak scaling)."""
    return {f"ZeRO-{stage}": [step_seconds(load, stage, gpus, cluster) for gpus in GPUS] for stage in STAGES}


def strong(load: Load, cluster: Cluster, least: int = 8) -> dict[str, list[float | None]]:
    """The same with one global batch, that of ``least`` GPUs, cut among all."""
    return {
        f"ZeRO-{stage}": [
            step_seconds(replace(load, compute=load.compute * least / gpus, feed=load.feed * least / gpus),
                         stage, gpus, cluster) if gpus >= least else None
            for gpus in GPUS
        ]
        for stage in STAGES
    }  # fmt: skip


def plot(result: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), constrained_layout=True)
    for name, seconds in result["weak"].items():
        axes[0].plot(GPUS, [seconds[0] / s for s in seconds], marker="o", markersize=3, label=name)
    for name, seconds in result["strong"].items():
        known = [(gpus, s) for gpus, s in zip(GPUS, seconds, strict=True) if s is not None]
        axes[1].plot([g for g, _ in known], [known[0][1] * known[0][0] / (s * g) for g, s in known], marker="o",
                     markersize=3, label=name)  # fmt: skip
    titles = ("the same batch a GPU (weak)", "the batch of 8 GPUs cut among all (strong)")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(xscale="log", xlabel="GPUs", ylabel="efficiency", ylim=(0, 1.05))
        axis.set_title(f"{title}: model, GPU inputs assumed", loc="left", fontsize=9)
        axis.set_xticks(GPUS, [str(gpus) for gpus in GPUS], fontsize=7)
        axis.minorticks_off()
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--json", type=Path, metavar="FILE", help="where the result goes; the picture beside it, as .png")
    add("--compute", type=float, default=0.040, help="seconds of a GPU's step (default: %(default)s, assumed)")
    add("--compute-measured", action="store_true", help="--compute was measured, not assumed")
    add("--feed", type=float, default=0.068, help="seconds to assemble its batch (default: %(default)s, of 256 pairs)")
    add("--workers", type=int, default=4, help="loader processes a GPU (default: %(default)s)")
    add("--micro-batches", type=int, default=1, help="of a step (default: %(default)s)")
    add("--ranks", type=int, nargs="*", default=[2, 3, 4], help="gloo processes to check on (default: 2 3 4)")
    add("--repeats", type=int, default=15, help="of each timing (default: %(default)s)")
    add("--sweep", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.sweep:
        _sweep(args.sweep, args.repeats)
        return 0
    if args.json is None:
        parser.error("--json FILE is not given")
    check_writable(args.json)
    load = Load(bert_base_groups(), 2, args.micro_batches, args.compute, args.feed, args.workers)
    proofs = [proof for ranks in args.ranks for proof in check_on_gloo(ranks, args.repeats)]
    result = report([], torch.device("cpu")) | {
        "rows": proofs,
        "load": asdict(load), "cluster": asdict(DGX_H100),
        "inputs": {"compute": "measured" if args.compute_measured else "assumed", "feed": "assumed",
                   "cluster": "assumed, of data sheets", "groups": "exact", "collectives": "exact"},
        "gpus": list(GPUS), "weak": curves(load, DGX_H100), "strong": strong(load, DGX_H100),
    }  # fmt: skip
    write_json(args.json, result)
    plot(result, args.json.with_suffix(".png"))
    print(f"{args.json} and {args.json.with_suffix('.png')} written")
    return 0 if all(proof["met"] for proof in proofs) else 1


if __name__ == "__main__":
    sys.exit(main())
