"""Deliberate breaks of the package, each of which some test must notice: `python -m tests.mutants --json FILE`.

    mutant.py            what a mutant is
    csrc.py ... settings.py   the breaks, a file an area of the package
    workspace.py         a copy of the tree in which one is applied, built and tested
    board.py             the scoreboard, written row by row

docs/testing.md says how to add one.
"""

from __future__ import annotations

from tests.mutants import csrc, data, engine, evaluation, export, kernels, model, settings
from tests.mutants.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (
    *csrc.MUTANTS, *kernels.MUTANTS, *data.MUTANTS, *model.MUTANTS, *engine.MUTANTS, *evaluation.MUTANTS,
    *export.MUTANTS, *settings.MUTANTS,
)  # fmt: skip
