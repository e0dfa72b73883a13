"""A whole training step in a process of its own, run on command: so that each peer has its own allocator, compiler
state and memory peak, and two of them can still be timed in turn."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from benchmarks.measure import resident

LIMIT = 900  # seconds for an answer; the longest is compiling on two cores


@dataclass(frozen=True)
class Step:
    """What to run. Every step: forward, backward and AdamW on float32 (master) weights, dropout as released.

    model: fields of `FashionBertConfig`. lengths: title tokens of the pool's samples, whole batches of ``pairs``.
    """

    name: str
    model: dict[str, Any]
    lengths: tuple[int, ...]
    pairs: int
    device: str
    ours: bool = True
    precision: str = "bf16"  # ours: dtype of the weights (fp32 masters kept); peers: fp32, or bf16 autocast
    narrow_weights: bool = False  # peers in bf16: bf16 weights with fp32 masters, as ours, in place of autocast
    pad_to: int | None = None  # peers: title tokens, else the longest of the batch
    dense_heads: bool = False
    bucketed: bool = False  # peers: samples of like length in a batch
    compiled: bool = False
    zero_stage: int | None = None  # ours under DeepSpeed
    without: str | None = None  # ours with one technique switched off: see `switched_off`

    def but(self, **changes) -> Step:
        return replace(self, **changes)


class StepProcess:
    """A running `Step`. Close it to give its memory back."""

    def __init__(self, step: Step) -> None:
        context = multiprocessing.get_context("spawn")
        self.step = step
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, step), daemon=True)
        self.process.start()
        theirs.close()

    def _ask(self, what: str) -> Any:
        self.connection.send(what)
        if not self.connection.poll(LIMIT):
            self.process.kill()
            raise RuntimeError(f"{self.step.name}: no answer in {LIMIT} s")
        try:
            kind, value = self.connection.recv()
        except EOFError as error:
            raise RuntimeError(f"{self.step.name}: its process ended (out of memory?)") from error
        if kind == "error":
            raise RuntimeError(f"{self.step.name}: {value}")
        return value

    def losses(self) -> list[float]:
        """Mean mlm, tia and mpm losses over the pool, with the initial weights and without dropout."""
        return self._ask("losses")

    def seconds(self) -> float:
        """Of one training step for each batch of the pool."""
        return self._ask("seconds")

    def facts(self) -> dict[str, float]:
        """Of the pool: ``useful_flops``, ``tokens`` (useful), ``samples``; ``gemm_rate`` (FLOP/s); ``memory`` (bytes:
        the peak since the process's libraries were loaded)."""
        return self._ask("facts")

    def __enter__(self) -> StepProcess:
        return self

    def __exit__(self, *_) -> None:
        self.connection.close()
        self.process.join(30)
        if self.process.is_alive():
            self.process.kill()


def _serve(connection, step: Step) -> None:
    import traceback

    runner = None
    while True:
        try:
            what = connection.recv()
        except EOFError:
            return
        try:
            runner = runner or _Runner(step)
            connection.send(("value", getattr(runner, what)()))
        except Exception:
            connection.send(("error", traceback.format_exc()))


@dataclass
class _Runner:
    step: Step
    device: torch.device = field(init=False)

    def __post_init__(self) -> None:
        import transformers  # noqa: F401 - counted to no peer's memory

        from benchmarks.steps.peers import PaddedFashionBert
        from benchmarks.steps.workload import make_batches
        from fashionbert_fast import FashionBertConfig, FashionBertForPreTraining
        from fashionbert_fast.engine.speed.memory import keep_freed_memory

        s = self.step
        self.device = torch.device(s.device)
        if s.ours and s.without != "kept memory" and self.device.type == "cpu":
            keep_freed_memory()
        self.before = resident("VmRSS")
        torch.manual_seed(0)
        config = FashionBertConfig(**s.model)
        model = FashionBertForPreTraining(config)
        wide = torch.float32 if s.precision == "fp32" else torch.bfloat16
        batches = make_batches(config, np.asarray(s.lengths), s.pairs, dtype=wide, bucketed=s.bucketed)
        self.counts = _counts(batches)
        self.dtype = wide
        if s.ours:
            self._build_ours(model, batches)
        else:
            self._build_peer(PaddedFashionBert.from_ours(model, s.dense_heads), batches)

    def _build_ours(self, model, batches) -> None:
        s = self.step
        self.batches = [switched_batch(batch, s.without).to(self.device) for batch in batches]
        self.model, config = model.to(self.device), model.config
        self.call = lambda batch: (lambda output: (output.loss, output.losses_T))(self.engine(batch))
        if s.zero_stage is None:
            self.engine = self.model.to(self.dtype)
            self.optimizer = MasterAdamW(self.model)
            self.backward, self.update = torch.Tensor.backward, self.optimizer.step
        else:
            self.engine = _deepspeed_engine(self.model, s)
            self.model = self.engine.module
            self.backward, self.update = self.engine.backward, self.engine.step
        self.config = config

    def _build_peer(self, model, batches) -> None:
        from benchmarks.steps.peers import pad

        s = self.step
        self.config = model.config
        self.batches = [pad(batch, s.pad_to).to(self.device) for batch in batches]
        allow_tf32(s)
        self.model = model.to(self.device, torch.bfloat16 if s.narrow_weights else torch.float32)
        run = torch.compile(self.model) if s.compiled else self.model
        narrow_products = s.precision == "bf16" and not s.narrow_weights
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=narrow_products)

        def call(batch):
            with autocast:
                return run(batch)

        self.call = call
        self.optimizer = MasterAdamW(self.model)
        self.backward, self.update = torch.Tensor.backward, self.optimizer.step

    @torch.no_grad()
    def losses(self) -> list[float]:
        self.model.eval()
        counts = torch.stack([batch_counts.float() for batch_counts in self.counts["each"]])
        with switched_off(self.step.without):
            each = torch.stack([self.call(batch)[1].float().cpu() for batch in self.batches])
        self.model.train()
        return ((each * counts).sum(0) / counts.sum(0)).tolist()

    def seconds(self) -> float:
        with switched_off(self.step.without):
            start = time.perf_counter()
            for batch in self.batches:
                self.backward(self.call(batch)[0])
                self.update()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - start

    def facts(self) -> dict[str, float]:
        from fashionbert_fast.data.batch import StepCounts
        from fashionbert_fast.engine.reporting.flops import useful_flops

        counts = StepCounts(*self.counts["sum"].tolist())
        peak = resident("VmHWM") - self.before
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated()
        return {
            "useful_flops": useful_flops(self.config, counts),
            "tokens": counts.tokens,
            "samples": len(self.step.lengths),
            "gemm_rate": _gemm_rate(self.config, self.device),
            "memory": peak,
        }


def allow_tf32(peer: Step) -> None:
    """In float32 on a GPU, as torch advises: nobody who trains so goes without. In this process."""
    if peer.device == "cuda" and peer.precision == "fp32":
        torch.set_float32_matmul_precision("high")


def _counts(batches) -> dict[str, Any]:
    from fashionbert_fast.data.batch import StepCounts

    return {"each": [batch.targets.counts_T for batch in batches], "sum": StepCounts.of(batches)}


def _gemm_rate(config, device: torch.device) -> float:
    """FLOP/s of the bf16 product the encoder does most, (T, H) x (H, F): the median of 15, at T = 4096 on a CPU; at
    T = 32768 on a GPU, 20 in a row between two events, so that no wait of the host and no launch is in it."""
    cuda = device.type == "cuda"
    T, H, F = 32768 if cuda else 4096, config.hidden_size, config.intermediate_size
    a, b = (torch.randn(*shape, device=device).bfloat16() for shape in ((T, H), (H, F)))
    out, times, calls = torch.empty(T, F, device=device, dtype=torch.bfloat16), [], 20 if cuda else 1
    for _ in range(18):
        start = time.perf_counter()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if cuda else []
        for event in events[:1]:
            event.record()
        for _ in range(calls):
            torch.mm(a, b, out=out)
        for event in events[1:]:
            event.record()
        if cuda:
            torch.cuda.synchronize()
        times.append(events[0].elapsed_time(events[1]) / 1e3 if cuda else time.perf_counter() - start)
    return 2 * T * H * F * calls / sorted(times[3:])[7]


class MasterAdamW:
    """torch's fused AdamW on float32 copies of the weights, which stay in their own dtype."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.weights = list(model.parameters())
        self.same = all(weight.dtype == torch.float32 for weight in self.weights)
        self.masters = self.weights if self.same else [w.detach().float().requires_grad_() for w in self.weights]
        self.adamw = torch.optim.AdamW(self.masters, lr=1e-5, fused=True)

    def step(self) -> None:
        if not self.same:
            for master, weight in zip(self.masters, self.weights, strict=True):
                master.grad, weight.grad = weight.grad.float(), None
        self.adamw.step()
        self.adamw.zero_grad()
        if not self.same:
            with torch.no_grad():
                torch._foreach_copy_(self.weights, self.masters)


def _deepspeed_engine(model, step: Step):
    from fashionbert_fast.config import Config
    from fashionbert_fast.distributed import init_distributed
    from fashionbert_fast.engine.build import start_engine

    init_distributed()
    config = Config()
    config.train.micro_batch_size, config.train.zero_stage = step.pairs, step.zero_stage
    config.train.precision, config.train.gradient_clipping = step.precision, 0.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    return start_engine(model, optimizer, None, config, 1)


def switched_batch(batch, without: str | None):
    """The batch as it would be without that technique."""
    from benchmarks.steps.ablation import with_dense_heads, without_packing

    if without == "packing":
        return without_packing(batch)
    return with_dense_heads(batch) if without == "masked-only heads" else batch


@contextmanager
def switched_off(without: str | None) -> Iterator[None]:
    """The operators that technique stands for replaced by plain PyTorch while in the block."""
    from benchmarks.steps.ablation import REPLACEMENTS

    saved: list[tuple[Any, str, Callable]] = []
    for module, name, plain in REPLACEMENTS.get(without, ()):
        saved.append((module, name, getattr(module, name)))
        setattr(module, name, plain)
    try:
        yield
    finally:
        for module, name, original in saved:
            setattr(module, name, original)
