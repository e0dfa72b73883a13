"""Trees beside the checkout: a commit's files or the tracked ones as they are, and libraries that go along."""

from __future__ import annotations

import subprocess

import pytest

from benchmarks.tree import copy_commit, copy_files, take_libraries, tracked_files
from fashionbert_fast.errors import InputError


def test_files_as_they_were_committed_and_as_they_are(tmp_path):
    root, was, now = (tmp_path / name for name in ("root", "was", "now"))
    (root / "fashionbert_fast").mkdir(parents=True)
    (root / "fashionbert_fast" / "a.py").write_text("old")
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@y"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], cwd=root, check=True)
    (root / "fashionbert_fast" / "a.py").write_text("new")
    (root / "fashionbert_fast" / "_C.so").write_text("library")
    copy_commit(root, "HEAD", was)
    copy_files(root, tracked_files(root), now)
    for tree, text in ((was, "old"), (now, "new")):
        take_libraries(root, tree)
        assert (tree / "fashionbert_fast" / "a.py").read_text() == text
        assert (tree / "fashionbert_fast" / "_C.so").read_text() == "library"
    with pytest.raises(InputError, match="is no git checkout"):
        tracked_files(tmp_path)
