"""What a run reports: metrics.jsonl, TensorBoard events, a progress bar. Rank 0 only."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

from fashionbert_fast.errors import InputError

METRICS = "metrics.jsonl"


def read_metrics(run: Path) -> list[dict]:
    """The records of a run directory's metrics.jsonl; a torn last line (a killed run) is left out."""
    path = run / METRICS
    records = []
    if not path.exists():
        return records
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def _scalars(record: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every value of a record with the path of its keys, such as ``losses/mlm``."""
    for key, value in record.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value


class MetricsWriter:
    """Appends a record a logged step. On resume, records after the step resumed from are dropped first."""

    def __init__(self, run: Path, resumed_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        kept = [record for record in read_metrics(run) if record["step"] <= resumed_step]
        try:
            partial = run / f".{METRICS}.partial"  # killed between dropping and writing, it keeps what it had
            partial.write_text("".join(json.dumps(record) + "\n" for record in kept))
            os.replace(partial, run / METRICS)
            self.file = (run / METRICS).open("a")
            self.board = SummaryWriter(str(run / "tensorboard"), purge_step=resumed_step + 1 if resumed_step else None)
        except OSError as error:
            raise InputError(f"{run}: cannot be written ({error.strerror}); set train.output elsewhere") from error

    def write(self, record: dict) -> None:
        # JSON has no NaN or infinity: null, as strict readers expect.
        clean = json.loads(json.dumps(record), parse_constant=lambda _: None)
        self.file.write(json.dumps(clean, allow_nan=False) + "\n")
        self.file.flush()
        for name, value in _scalars(record):
            if name != "step" and isinstance(value, (int, float)) and math.isfinite(value):
                self.board.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self.file.close()
        self.board.close()
