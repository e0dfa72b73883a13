"""Progress bars on long work: drawn by rich on a terminal, silent elsewhere, never on ranks other than 0."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

T = TypeVar("T")


class TwoLines(Progress):
    """What every bar has on one line, which is as wide as the terminal; a task's ``detail`` below it, folded to fit."""

    def get_renderables(self) -> Iterator[RenderableType]:
        for task in self.tasks:
            yield self.make_tasks_table([task])
            if task.fields.get("detail"):
                yield Text(task.fields["detail"])


def progress_bar() -> Progress:
    """A rich Progress on stderr with count, elapsed and remaining time; disabled off a terminal and on ranks > 0.

    ``update(task, detail=TEXT)`` says more below the bar.
    """
    console = Console(stderr=True)
    enabled = console.is_terminal and int(os.environ.get("RANK", "0")) == 0
    return TwoLines(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),  # as wide as the others leave it
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not enabled,
        expand=True,
    )


def progress(items: Iterable[T], total: int | None, description: str) -> Iterator[T]:
    """Yield from ``items`` under a progress bar of ``total`` steps labelled ``description``."""
    with progress_bar() as bar:
        task = bar.add_task(description, total=total)
        for item in items:
            yield item
            bar.advance(task)
