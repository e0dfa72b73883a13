"""A mutant: one deliberate break of one file, and the tests that should notice."""

from __future__ import annotations

import ast
import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

QUICK_SHARE = 5  # --quick takes one in so many


@functools.cache
def _functions(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def _exists(root: Path, test: str) -> bool:
    """Whether a test file, or the function that a node id names, is there: what is not would fail and kill nothing."""
    file, _, name = test.partition("::")
    return (root / file).is_file() and (not name or name.partition("[")[0] in _functions(root / file))


@dataclass(frozen=True)
class Mutant:
    """``old`` occurs exactly once in ``file`` and becomes ``new``; ``tests`` (files or node ids) run in their order."""

    name: str
    file: str  # from the root of the tree
    old: str
    new: str
    tests: tuple[str, ...]  # nearest first; the first failure ends it

    @property
    def is_native(self) -> bool:
        """Whether the library must be built again."""
        return self.file.startswith("csrc/")

    @property
    def is_quick(self) -> bool:
        """Whether it belongs to the fixed share that --quick takes: by a hash of its name."""
        return hashlib.sha256(self.name.encode()).digest()[0] % QUICK_SHARE == 0

    def complaint(self, root: Path) -> str | None:
        """Why it cannot be applied to the tree at ``root``, or None."""
        path = root / self.file
        if not path.is_file():
            return f"{self.name}: {self.file} is not there"
        found = path.read_text().count(self.old)
        if found != 1:
            return f"{self.name}: {self.file} holds {self.old!r} {found} times, not once"
        if self.old == self.new:
            return f"{self.name}: changes nothing"
        missing = [test for test in self.tests if not _exists(root, test)]
        if missing or not self.tests:
            return f"{self.name}: {f'{missing[0]} is not there' if missing else 'names no test'}"
        return None

    def applied(self, text: str) -> str:
        """The file's ``text``, broken."""
        return text.replace(self.old, self.new, 1)
