"""The sources of csrc/cuda/ built for a CPU, where every thread of a block is a thread of the host: cuda_runtime.h."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
BUILD = HERE.parents[1] / "build" / "cuda_on_cpu"
SOURCES = (CSRC / "schema.cpp", *sorted((CSRC / "cuda").glob("*.cu")))
COMPILER = shutil.which("g++")


def library(sanitizer: str | None = None, only: str | None = None, change: tuple[str, str] = ("", "")) -> Path:
    """The operators as a library for `torch.ops.load_library`; built once for these contents.

    sanitizer: address or thread. only: of one .cu file, in which ``change[1]`` stands for ``change[0]``, to break it.
    """
    sources = [path for path in SOURCES if only in (None, path.name) or path.name == "schema.cpp"]
    texts = {path: path.read_text() for path in sources}
    if only is not None:
        assert change[0] in texts[CSRC / "cuda" / only], f"{only} has no {change[0]!r}"
        texts[CSRC / "cuda" / only] = texts[CSRC / "cuda" / only].replace(*change, 1)
    command = [str(COMPILER), *_options(sanitizer)]
    headers = [*CSRC.rglob("*.h"), *HERE.glob("*.h")]
    contents = "\0".join(
        [*command, torch.__version__, *texts.values(), *(path.read_text() for path in sorted(headers))]
    )
    target = BUILD / f"{hashlib.sha256(contents.encode()).hexdigest()[:16]}.so"
    if not target.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILD) as directory:
            _build(command, texts, Path(directory), target)
    return target


def _options(sanitizer: str | None) -> list[str]:
    include = Path(torch.__file__).parent / "include"
    return [
        "-std=c++20", "-O1", "-g1", "-fPIC", "-pthread", "-fvisibility=hidden", "-w", "-I", str(HERE), "-I", str(CSRC),
        "-isystem", str(include), "-include", str(HERE / "as_cpu_operators.h"),
        "-DTORCH_TARGET_VERSION=0x020b000000000000",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        *([f"-fsanitize={sanitizer}"] if sanitizer else []),
    ]  # fmt: skip


def _build(command: list[str], texts: Mapping[Path, str], directory: Path, target: Path) -> None:
    def compile_one(path: Path) -> str:
        source = directory / path.name
        source.write_text(texts[path])
        made = str(source.with_suffix(".o"))
        done = subprocess.run([*command, "-x", "c++", "-c", str(source), "-o", made], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[:4000]
        return made

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, texts))
    libraries = Path(torch.__file__).parent / "lib"
    made = directory / "made.so"
    subprocess.run(
        [*command, "-shared", *objects, "-o", str(made), f"-L{libraries}", "-ltorch_cpu", "-ltorch"], check=True
    )
    os.replace(made, target)


def runtime(sanitizer: str) -> str:
    """The sanitizer's own library, which must be loaded before everything else: LD_PRELOAD."""
    name = {"address": "libasan.so", "thread": "libtsan.so"}[sanitizer]
    done = subprocess.run([str(COMPILER), f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return done.stdout.strip()
