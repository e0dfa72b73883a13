"""A tree of the project beside the checkout: where its files and native libraries come from, and what runs in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from fashionbert_fast.errors import InputError

ROOT = Path(__file__).parent.parent
PACKAGE = "fashionbert_fast"
BUILD = (sys.executable, "setup.py", "build_ext", "--build-lib", ".")
CPU_ONLY = {"FASHIONBERT_CUDA": "OFF"}  # for the build: what only a GPU runs is neither broken nor compared


def tracked_files(root: Path) -> list[str]:
    """Files of the tree as git knows them. InputError outside a checkout."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True)
    if done.returncode != 0:
        raise InputError(f"{root}: is no git checkout, whose files could be copied; run this in one")
    return [name for name in done.stdout.split("\0") if name and (root / name).exists()]


def copy_files(root: Path, files: Sequence[str], tree: Path) -> None:
    """``files`` of the tree at ``root``, as they are now."""
    for name in files:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, tree / name, follow_symlinks=False)  # configs is a link


def copy_commit(root: Path, commit: str, tree: Path) -> None:
    """The files of ``commit`` of the checkout at ``root``."""
    tree.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", commit], cwd=root, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x"], cwd=tree, input=archive, check=True)


def libraries(tree: Path) -> list[Path]:
    """The native libraries of ``tree``."""
    return sorted((tree / PACKAGE).glob("*.so"))


def take_libraries(source: Path, tree: Path) -> None:
    """The native libraries of the tree at ``source``."""
    for library in libraries(source):
        shutil.copy2(library, tree / PACKAGE)


def environment(tree: Path, **extra: str) -> dict[str, str]:
    """Of a process in ``tree``: it sees that tree's package and this interpreter's tools."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return os.environ | {"PYTHONPATH": str(tree), "PATH": path} | extra
