"""A way of saving that loses what it had, for test_reliability.py, which finds out whether the judge notices."""

from __future__ import annotations

import shutil

from tests.reliability import disk


def on_faulty_disk(fault: disk.Fault, *words: str) -> int:
    """As `disk.on_faulty_disk`, but a save begins with the end of all earlier ones."""
    from fashionbert_fast.engine.checkpointing.saver import Saver
    from fashionbert_fast.run_directory import list_checkpoints

    begin = Saver.begin

    def careless(saver: Saver, *arguments, **options) -> None:
        saver.finish()  # the one before is whole
        for checkpoint in list_checkpoints(saver.run):
            shutil.rmtree(checkpoint)
        begin(saver, *arguments, **options)

    Saver.begin = careless
    return disk.on_faulty_disk(fault, *words)
