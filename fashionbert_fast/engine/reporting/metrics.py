"""What a run reports: metrics.jsonl, TensorBoard events, Weights & Biases where asked for. Rank 0 only."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

from fashionbert_fast.config import Config
from fashionbert_fast.errors import InputError

METRICS = "metrics.jsonl"


def read_metrics(run: Path) -> list[dict]:
    """The records of a run directory's metrics.jsonl; a torn last line (a killed run) is left out."""
    path = run / METRICS
    records = []
    if not path.exists():
        return records
    for line in path.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            break
        records.append(record)
    return records


def _scalars(record: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every value of a record with the path of its keys, such as ``losses/mlm``."""
    for key, value in record.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value


class MetricsWriter:
    """Appends a record a logged step. On resume, records after the step resumed from are dropped first.

    A disk that is full does not end the run: what it did not take is written with the next record, TensorBoard's events
    end there.
    """

    def __init__(self, run: Path, resumed_step: int, config: Config | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        kept = [record for record in read_metrics(run) if record["step"] <= resumed_step]
        self.path, self.waiting, self.told = run / METRICS, b"", False
        try:
            partial = run / f".{METRICS}.partial"  # killed between dropping and writing, it keeps what it had
            partial.write_text("".join(json.dumps(record) + "\n" for record in kept))
            os.replace(partial, self.path)
            self.file = self.path.open("ab", buffering=0)
            self.board = SummaryWriter(str(run / "tensorboard"), purge_step=resumed_step + 1 if resumed_step else None)
        except OSError as error:
            raise InputError(f"{run}: cannot be written ({error.strerror}); set train.output elsewhere") from error
        self.wandb = _weights_and_biases(run, config) if config is not None and config.train.wandb else None

    def write(self, record: dict) -> None:
        # JSON has no NaN or infinity: null, as strict readers expect.
        clean = json.loads(json.dumps(record), parse_constant=lambda _: None)
        self.waiting += json.dumps(clean, allow_nan=False).encode() + b"\n"
        try:
            while self.waiting:
                self.waiting = self.waiting[self.file.write(self.waiting) :]
        except OSError as error:
            self._tell(error)
        numbers = {
            name: value for name, value in _scalars(record)
            if name != "step" and isinstance(value, (int, float)) and math.isfinite(value)
        }  # fmt: skip
        self._to_board(numbers, record["step"])
        if self.wandb is not None:
            self.wandb.log(numbers, step=record["step"])

    def _to_board(self, numbers: Mapping[str, float], step: int) -> None:
        if self.board is None:
            return
        try:
            for name, value in numbers.items():
                self.board.add_scalar(name, value, step)
        except OSError as error:  # its own thread's, met some records ago
            self.board = None
            self._tell(error)

    def _tell(self, error: OSError) -> None:
        if not self.told:
            print(f"{self.path}: cannot be written ({error.strerror}); make room, training goes on", flush=True)
        self.told = True

    def close(self) -> None:
        self.file.close()
        try:
            if self.board is not None:
                self.board.close()
        except OSError as error:
            self._tell(error)
        if self.wandb is not None:
            self.wandb.finish()


def _weights_and_biases(run: Path, config: Config):
    """The run of Weights & Biases that belongs to this one, begun or continued; its name is in RUN/wandb-id.txt."""
    import wandb  # pyright: ignore[reportMissingImports]  # optional

    name = run / "wandb-id.txt"
    if not name.exists():
        name.write_text(secrets.token_hex(8) + "\n")
    return wandb.init(
        project="fashionbert_fast", id=name.read_text().strip(), resume="allow", name=run.name, dir=str(run),
        config=dataclasses.asdict(config),
    )  # fmt: skip
