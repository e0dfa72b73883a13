"""A file stays short enough to be read in one go, or says in its first comment why it is long."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MOST = 400
FOLDERS = ("fashionbert_fast", "csrc", "benchmarks")
SOURCES = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
LONG = sorted(
    str(path.relative_to(ROOT))
    for path in SOURCES
    if path.suffix in (".py", ".cpp", ".cu", ".h") and path.read_text().count("\n") > MOST
)


def first_comment(source: str) -> str:
    """A module's docstring, or the comment lines that a C++ file begins with."""
    if source.startswith('"""'):
        return source.split('"""')[1]
    lines = source.splitlines()
    return "\n".join(lines[: next(i for i, line in enumerate(lines) if not line.startswith("//"))])


@pytest.mark.parametrize("name", LONG)
def test_a_long_file_says_why(name):
    assert "Long:" in first_comment((ROOT / name).read_text()), f"{name}: over {MOST} lines; split it or say why"
