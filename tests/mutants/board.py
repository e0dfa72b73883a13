"""The scoreboard: a row a mutant, on disk as soon as it is known."""

from __future__ import annotations

import json
from pathlib import Path

from fashionbert_fast.files import write_json
from tests.mutants.mutant import Mutant
from tests.mutants.workspace import FROM_OUTSIDE, NOT_BUILT, Outcome

SHARE = 0.95  # of the mutants must be killed
BASELINE = "the named tests pass on the unbroken tree"
SUMMARY = "killed"


class Board:
    """Rows of proofs at ``path``, under ``head`` (device, versions, commit)."""

    def __init__(self, path: Path, head: dict) -> None:
        self.path, self.head = path, head
        self.rows: dict[str, dict] = {}

    def take_up(self) -> bool:
        """Go on with the rows that the file has, if they are of this very commit; whether they were."""
        try:
            kept = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return False
        if kept.get("commit") != self.head["commit"] or self.head["commit"].endswith("+"):
            return False
        self.rows = {row["proof"]: row for row in kept["rows"] if row["proof"] != SUMMARY}
        return True

    def add_baseline(self, broken: list[str]) -> None:
        self._add({"proof": BASELINE, "k": int(not broken), "n": 1, "met": not broken, "failed": broken[:20]})

    def add(self, mutant: Mutant, outcome: Outcome) -> None:
        killed = outcome.killed_by not in (None, NOT_BUILT, FROM_OUTSIDE)  # what ran no test proves nothing
        self._add(
            {"proof": mutant.name, "k": int(killed), "n": 1, "met": killed, "killed_by": outcome.killed_by,
             "seconds": round(outcome.seconds, 1), "file": mutant.file}
        )  # fmt: skip

    def _add(self, row: dict) -> None:
        self.rows[row["proof"]] = row
        write_json(self.path, self.head | {"rows": [*self.rows.values(), self.summary()]})

    def mutants(self) -> list[dict]:
        return [row for row in self.rows.values() if row["proof"] != BASELINE]

    def survivors(self) -> list[dict]:
        return [row for row in self.mutants() if not row["met"]]

    def summary(self) -> dict:
        """k of n killed, and whether that is enough."""
        n, k = len(self.mutants()), len(self.mutants()) - len(self.survivors())
        return {"proof": SUMMARY, "k": k, "n": n, "met": n > 0 and k >= SHARE * n}
