"""A whole training step (forward, backward, AdamW) of BERT-base FashionBERT beside what engineers would write instead.

Every step runs in a process of its own; ours and a peer are timed in turn, pass by pass over the same pool of samples,
after their losses with the initial weights have been found equal. Peers:

    (a) the released recipe: titles padded to 64, dense heads, eager, in float32 (TF32 on a GPU) and in bf16 autocast
    (b) Hugging Face's BertModel, SDPA, bf16 autocast, padded to the longest of the batch, heads on masked rows
    (c) b under torch.compile
    (d) b and c with samples of like length in a batch (bucketing), so almost unpadded
    (b), (c), (d) once more with bf16 weights and float32 masters, as ours, in place of autocast
    (f) ours under DeepSpeed ZeRO-1 and ZeRO-2, whose ratio says what DeepSpeed costs

Useful FLOPs are engine/reporting/flops.py's: no padding, heads on masked rows only, masked patches not projected.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.measure import Figure, Row
from benchmarks.steps.ablation import TECHNIQUES
from benchmarks.steps.step_process import Step, StepProcess
from benchmarks.steps.workload import LONGEST_TITLE, fashion_gen_lengths, store_lengths
from fashionbert_fast import cpu
from fashionbert_fast.progress import progress

MODELS = {
    "base": {"vocab_size": 30522, "patches": 64, "patch_feature_size": 2048},
    "large": {"vocab_size": 30522, "patches": 64, "patch_feature_size": 2048, "hidden_size": 1024,
              "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}  # fmt: skip
MODELS["toy"] = MODELS["base"] | {
    "vocab_size": 500, "patch_feature_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 128,
}  # fmt: skip
PAIRS = {"cpu": {"base": 32, "large": 16, "toy": 8}, "cuda": {"base": 256, "large": 128, "toy": 8}}
TARGETS = {  # times faster than the peer: on a CPU, on a GPU
    "a-float32": (6.0, 4.0), "a-bf16": (1.8, 4.0), "b": (1.5, 1.5), "b-weights": (1.5, 1.5), "c": (1.5, 1.5),
    "c-weights": (1.5, 1.5), "d": (1.15, 1.3), "d-weights": (1.15, 1.3), "d-compiled": (1.15, 1.3),
    "d-compiled-weights": (1.15, 1.3), "zero-1": (1 / 1.05, 1 / 1.05), "zero-2": (1 / 1.05, 1 / 1.05),
}  # fmt: skip
BUCKETED_ON_AMX = 1.7  # in place of 1.15: there matmuls take so little of the time that all else shows
NAMES = {
    "a-float32": "(a) released recipe, float32", "a-bf16": "(a) released recipe, bf16 autocast",
    "b": "(b) HF + SDPA, bf16 autocast", "b-weights": "(b) HF + SDPA, bf16 weights",
    "c": "(c) HF + SDPA + torch.compile", "c-weights": "(c) HF + SDPA + torch.compile, bf16 weights",
    "d": "(d) HF + SDPA, bucketed", "d-weights": "(d) HF + SDPA, bucketed, bf16 weights",
    "d-compiled": "(d) HF + SDPA + torch.compile, bucketed",
    "d-compiled-weights": "(d) HF + SDPA + torch.compile, bucketed, bf16 weights",
    "zero-1": "(f) ours under ZeRO-1", "zero-2": "(f) ours under ZeRO-2",
}  # fmt: skip
# Two models in bf16 from equal weights: their losses differ by rounding of the hidden states.
TOLERANCE = 1e-2
POOL = 4  # batches of samples, among which (d) sorts


def peers(ours: Step) -> dict[str, Step]:
    """What ours is measured against."""
    padded = ours.but(ours=False)
    narrow = padded.but(narrow_weights=True)
    return {
        "a-float32": padded.but(precision="fp32", pad_to=LONGEST_TITLE, dense_heads=True),
        "a-bf16": padded.but(pad_to=LONGEST_TITLE, dense_heads=True),
        "b": padded,
        "b-weights": narrow,
        "c": padded.but(compiled=True),
        "c-weights": narrow.but(compiled=True),
        "d": padded.but(bucketed=True),
        "d-weights": narrow.but(bucketed=True),
        "d-compiled": padded.but(bucketed=True, compiled=True),
        "d-compiled-weights": narrow.but(bucketed=True, compiled=True),
        "zero-1": ours.but(zero_stage=1),
        "zero-2": ours.but(zero_stage=2),
    }


def peer_name(key: str, device: torch.device) -> str:
    """As rows show it: on a GPU the float32 peer multiplies in TF32."""
    return NAMES[key] + (" (TF32)" if key == "a-float32" and device.type == "cuda" else "")


def aim(key: str, device: torch.device) -> float:
    """How many times faster than that peer ours is to be on this machine."""
    if device.type == "cpu" and key.startswith("d") and "amx_bf16" in cpu.flags():
        return BUCKETED_ON_AMX
    return TARGETS[key][device.type == "cuda"]


def check_losses(ours: list[float], theirs: StepProcess) -> None:
    """AssertionError unless both have the same losses with the initial weights, to bf16's rounding."""
    for name, a, b in zip(("mlm", "tia", "mpm"), ours, theirs.losses(), strict=True):
        if not abs(a - b) <= TOLERANCE * abs(b):
            raise AssertionError(f"{theirs.step.name}: {name} loss is {b:.5f}, ours {a:.5f}: not the same step")


def _row(case: str, peer: str, ours: list[float], theirs: list[float], samples: int, target: float) -> Row:
    """From seconds a pass of each to samples per second and the median of the pairs' ratios."""
    ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    ratio, low, high = statistics.median(ratios), ratios[len(ratios) // 5], ratios[-1 - len(ratios) // 5]
    mine, other = samples / statistics.median(ours), samples / statistics.median(theirs)
    return Row(case, peer, mine, other, "samples/s", ratio, target, ratio >= target, [low, high])


def _turned(row: Row) -> Row:
    """The row the other way round: DeepSpeed's step is the one to judge, ours without it the peer."""
    ratio, spread = 1 / row.ratio, [1 / edge for edge in reversed(row.spread)]
    return Row(f"{row.case}, {row.peer}", "ours without DeepSpeed", row.peer_value, row.value, row.unit, ratio,
               row.target, ratio >= row.target, spread)  # fmt: skip


class _Comparison:
    """Ours, kept running, against one peer after another."""

    def __init__(self, case: str, ours: StepProcess, repeats: int, device: torch.device) -> None:
        self.case, self.ours, self.repeats, self.gpu = case, ours, repeats, device.type == "cuda"
        self.seconds: list[float] = []
        self.memory: dict[str, float] = {}
        self.losses = ours.losses()  # with the initial weights: the timed steps move them

    def against(self, peer: str, step: Step, target: float, repeats: int | None = None) -> tuple[Row, float]:
        """The row, and the peer's median seconds a pass."""
        with StepProcess(step.but(name=peer)) as theirs:
            check_losses(self.losses, theirs)
            for _ in range(2 if step.compiled else 1):  # a second time for what the first shapes recompile
                theirs.seconds()
            pairs = [(self.ours.seconds(), theirs.seconds()) for _ in range(repeats or self.repeats)]
            self.memory[peer] = theirs.facts()["memory"]
        mine, others = (list(column) for column in zip(*pairs, strict=True))
        self.seconds += mine
        return _row(self.case, peer, mine, others, len(step.lengths), target), statistics.median(others)


def _summary(comparison: _Comparison, facts: dict[str, float], case: str) -> list[Row | Figure]:
    """Useful tokens, MFU and memory of ours."""
    seconds = statistics.median(comparison.seconds)
    rate = facts["useful_flops"] / seconds
    share, target = rate / facts["gemm_rate"], 0.5 if comparison.gpu else 0.7
    tokens = facts["tokens"] / seconds
    rows = [
        Row(case, "bf16 GEMM rate of this run", rate / 1e12, facts["gemm_rate"] / 1e12, "useful TFLOP/s", share, target,
            share >= target, [share, share]),
        Figure(f"{case}, useful tokens", tokens, "tokens/s"),
    ]  # fmt: skip
    if NAMES["b"] in comparison.memory:
        theirs, mine = comparison.memory[NAMES["b"]], facts["memory"]
        ratio, target = theirs / mine, 1 / 0.7
        rows.append(Row(f"{case}, peak memory", NAMES["b"], mine / 2**20, theirs / 2**20, "MiB", ratio, target,
                        ratio >= target, [ratio, ratio]))  # fmt: skip
    return rows


def _packing_efficiency(case: str, packed: float, padded: float, batches_tokens: float, padded_tokens: float) -> Row:
    """Time that packing saved, of what it would save if time were proportional to tokens."""
    ideal = padded * (1 - batches_tokens / padded_tokens)
    saved = padded - packed
    efficiency = saved / ideal
    return Row(f"{case}, packing: time saved", "ideal: in proportion to tokens", saved, ideal, "s", efficiency, 0.95,
               efficiency >= 0.95, [efficiency, efficiency])  # fmt: skip


def rows(
    device: torch.device, quick: bool, *, size: str = "base", store: Path | None = None, only: tuple[str, ...] = ()
) -> Iterator[Row | Figure]:
    """Rows, as they come, of each peer and, on the Fashion-Gen-like profile, of the ladder: a technique of ours off.

    Args:
        size: base or large. store: a feature store whose titles' lengths give a second profile. only: names of peers
            (keys of `TARGETS`, or "ladder"); all by default. quick: half a batch, smaller pools, fewer repeats.

    Raises:
        RuntimeError: after all other rows, naming the peers that failed.
    """
    pairs = PAIRS[device.type][size] // (2 if quick else 1)
    count = pairs * (2 if quick else POOL)
    profiles = {"Fashion-Gen-like titles": fashion_gen_lengths(count)}
    if store is not None:
        profiles["the store's titles"] = store_lengths(store, count)
    failed: list[str] = []
    for name, lengths in profiles.items():
        ladder = name.startswith("Fashion")
        case = f"{size}, {name}, {pairs} a batch"
        yield from _profile(device, quick, size, case, lengths, pairs, ladder, only, failed)
    if failed:
        raise RuntimeError("; ".join(failed))


def _profile(device, quick, size, case, lengths, pairs, ladder, only, failed: list[str]) -> Iterator[Row | Figure]:
    ours = Step("ours", MODELS[size], tuple(int(n) for n in lengths), pairs, device.type)
    wanted = {key: step for key, step in peers(ours).items() if not only or key in only}
    with StepProcess(ours) as running:
        comparison = _Comparison(case, running, 2 if quick else 3, device)
        running.seconds()
        for key, step in progress(list(wanted.items()), total=len(wanted), description=f"{case}: peers"):
            repeats = 2 if key == "a-float32" else None  # by far the slowest, and far from its target
            peer = peer_name(key, device)
            try:
                row, _ = comparison.against(peer, step, aim(key, device), repeats)
            except (RuntimeError, AssertionError) as error:  # out of memory, say: it must not cost the others
                failed.append(f"{case}, {peer}: {error}")
                continue
            yield _turned(row) if key.startswith("zero") else row
        if ladder and (not only or "ladder" in only):
            yield from _ladder(comparison, ours, running.facts(), case)
        if comparison.seconds:
            yield from _summary(comparison, running.facts(), case)


def _ladder(comparison: _Comparison, ours: Step, facts: dict[str, float], case: str) -> Iterator[Row]:
    for technique in progress(list(TECHNIQUES), total=len(TECHNIQUES), description="each technique off in turn"):
        if technique == "kept memory" and comparison.gpu:
            continue
        before = len(comparison.seconds)
        row, padded = comparison.against(f"ours without {technique}", ours.but(without=technique), 1.0, 2)
        yield row
        if technique == "packing":
            tokens = len(ours.lengths) * (LONGEST_TITLE + ours.model["patches"])
            packed = statistics.median(comparison.seconds[before:])
            yield _packing_efficiency(case, packed, padded, facts["tokens"], tokens)
