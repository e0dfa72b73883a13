"""What a run knows of itself beside weights and optimizer. Every checkpoint holds it (state/training.json, ``run``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self


@dataclass
class TrainState:
    """skipped: steps passed over, by the last record. best_step: of the best validation so far, by
    ``validation.keep_best``; best: what it measured. stale: validations since then."""

    skipped: int = 0
    best_step: int | None = None
    best: dict[str, Any] | None = None
    stale: int = 0

    @classmethod
    def of(cls, saved: dict[str, Any]) -> Self:
        """What `dataclasses.asdict` gave. TypeError, ValueError or LookupError: of something else."""
        step, best = saved["best_step"], saved["best"]
        if (step is None) != (best is None):
            raise ValueError("best_step without best")
        known = (None, None) if best is None else (int(step), _numbers(best))
        return cls(int(saved["skipped"]), *known, int(saved["stale"]))


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    return {name: _numbers(value) if isinstance(value, dict) else float(value) for name, value in values.items()}
