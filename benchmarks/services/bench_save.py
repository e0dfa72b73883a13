"""How long training waits for a checkpoint: ours, DeepSpeed's own, and torch's distributed checkpoint beside training.

BERT-base under ZeRO-1 with Adam's moments: 1.3 GB of state, on the disk of the system's temporary folder. Ours and
torch's copy the state and write it from elsewhere while steps go on; that they do ends, untimed, before the next is
timed. Every peer's weights are read back and compared before anything is timed.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

from benchmarks.measure import Row
from benchmarks.steps.weights import master_weights
from fashionbert_fast.config import Config, DataConfig, TrainConfig
from fashionbert_fast.data.tokenizer import train_wordpiece
from fashionbert_fast.distributed import init_distributed, shutdown
from fashionbert_fast.engine.build import start_engine
from fashionbert_fast.engine.checkpointing.saver import Saver
from fashionbert_fast.engine.optimizer import build_optimizer, build_schedule
from fashionbert_fast.model.config import FashionBertConfig
from fashionbert_fast.objectives.pretraining import FashionBertForPreTraining
from fashionbert_fast.run_directory import MODEL, newest_valid

PAIRS = 3  # for each order
# peer -> times shorter to wait
PEERS = {"DeepSpeed save_checkpoint": 3.0, "torch async_save": 1.0}


def rows(device: torch.device, quick: bool) -> list[Row]:
    """A row a peer."""
    layers, device = 4 if quick else 12, init_distributed()
    folder = Path(tempfile.mkdtemp(prefix="save-"))
    try:
        engine = _engine(device, layers, folder)
        waits = _waits(engine, folder)
        _check(engine, folder, waits)
        found = _timed(waits, 2 if quick else PAIRS)
        engine.destroy()
    finally:
        shutil.rmtree(folder)
        shutdown()
    case = f"waiting for a checkpoint, {layers} layers H=768, ZeRO-1, AdamW, {engine.dtype_name}"
    return [_row(case, peer, found["ours"], found[peer]) for peer in PEERS]


def _engine(device: torch.device, layers: int, folder: Path):
    """An engine whose optimizer has taken a step, so that it has moments."""
    config = Config(
        data=DataConfig(store="none"), train=TrainConfig(output=str(folder), zero_stage=1, precision="bf16")
    )
    torch.manual_seed(0)
    model = FashionBertForPreTraining(FashionBertConfig(num_hidden_layers=layers)).to(device)
    model.feature_manifest = {}
    optimizer = build_optimizer(model, config.train, device)
    engine = start_engine(model, optimizer, build_schedule(optimizer, config.train), config, 1)
    for parameter in engine.module.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    engine.optimizer.backward_epilogue()
    engine.step()
    engine.dtype_name = "bf16 with float32 masters"
    return engine


def _waits(engine, folder: Path) -> dict[str, Callable[[], Callable[[], object]]]:
    """Of each: call it to save as far as training waits for, and what it gives to wait for the rest."""
    (folder / "ours").mkdir()
    train_wordpiece(["red shirt", "blue jeans"], 60, folder / "tokenizer")
    saver = Saver(engine, folder / "ours", folder / "tokenizer", "{}\n", TrainConfig(keep_checkpoints=1))
    steps = iter(range(1, 10**6))

    def ours():
        saver.begin(next(steps))
        return saver.finish

    def deepspeeds():
        engine.save_checkpoint(str(folder / "deepspeed"), tag="state", save_latest=False)
        return lambda: None

    def torchs():
        state = {"masters": engine.optimizer.single_partition_of_fp32_groups, "state": engine.optimizer.state_dict()}
        tensors = {f"{i}": tensor for i, tensor in enumerate(_tensors(state))}
        return dcp.async_save(tensors, checkpoint_id=str(folder / "torch")).result

    return {"ours": ours, "DeepSpeed save_checkpoint": deepspeeds, "torch async_save": torchs}


def _tensors(value) -> list[torch.Tensor]:
    """Every distinct tensor in there."""
    found: dict[int, torch.Tensor] = {}
    stack = [value]
    while stack:
        value = stack.pop()
        if isinstance(value, torch.Tensor):
            found.setdefault(value.data_ptr(), value)
        elif isinstance(value, dict):
            stack.extend(value.values())
        elif isinstance(value, (list, tuple)):
            stack.extend(value)
    return list(found.values())


def _check(engine, folder: Path, waits: dict) -> None:
    """Each wrote as many bytes of float32 as masters and moments have, ours the very weights."""
    for save in waits.values():
        save()()
    masters = master_weights(engine)
    checkpoint, complaints = newest_valid(folder / "ours")
    assert checkpoint is not None, complaints
    saved = type(engine.module).from_pretrained(checkpoint / MODEL).state_dict()
    assert all(torch.equal(saved[name], weight.cpu()) for name, weight in masters.items())
    least = 3 * 4 * sum(weight.numel() for weight in masters.values())
    for name in ("ours", "deepspeed", "torch"):
        size = sum(path.stat().st_size for path in (folder / name).rglob("*") if path.is_file())
        assert size >= least, f"{name}: {size} bytes, the state has {least}"


def _timed(waits: dict, pairs: int) -> dict[str, list[float]]:
    """Seconds of waiting, each beginning a round in its turn; what goes on beside is waited for, and written out."""
    found: dict[str, list[float]] = {name: [] for name in waits}
    names = deque(waits)
    for _ in range(pairs * len(names)):
        for name in names:
            os.sync()  # or the disk's backlog would be the next one's
            start = time.perf_counter()
            rest = waits[name]()
            found[name].append(time.perf_counter() - start)
            rest()
        names.rotate()
    return found


def _row(case: str, peer: str, ours: list[float], theirs: list[float]) -> Row:
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    low, *_, high = statistics.quantiles(ratios, n=5)
    ratio, target = statistics.median(ratios), PEERS[peer]
    value, peer_value = (statistics.median(seconds) * 1e6 for seconds in (ours, theirs))
    return Row(case, peer, value, peer_value, "us", ratio, target, ratio >= target, [low, high])
