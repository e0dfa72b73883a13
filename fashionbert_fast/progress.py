"""Progress bars on long work: drawn by rich on a terminal, silent elsewhere, never on ranks other than 0."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")


def progress_bar() -> Progress:
    """A rich Progress on stderr with count, elapsed and remaining time; disabled off a terminal and on ranks > 0."""
    console = Console(stderr=True)
    enabled = console.is_terminal and int(os.environ.get("RANK", "0")) == 0
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not enabled,
    )


def progress(items: Iterable[T], total: int | None, description: str) -> Iterator[T]:
    """Yield from ``items`` under a progress bar of ``total`` steps labelled ``description``."""
    with progress_bar() as bar:
        task = bar.add_task(description, total=total)
        for item in items:
            yield item
            bar.advance(task)
