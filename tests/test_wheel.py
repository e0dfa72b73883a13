"""The sdist and the wheel that is built from it, installed in an empty environment, outside the checkout.

`make wheel-test` runs this: it builds the operators once a level of processor and installs every dependency.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from outside import run_outside

from fashionbert_fast import cpu

ROOT = Path(__file__).parent.parent
# Another torch that the stable ABI promises: WHEEL_TORCH=2.11.0 make wheel-test
TORCH = f"torch=={os.environ.get('WHEEL_TORCH', torch.__version__.split('+')[0])}"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """An environment that holds the wheel and its dependencies; its folder is outside the checkout."""
    root = tmp_path_factory.mktemp("installed")
    run_outside(sys.executable, "-m", "venv", root / "env", cwd=root)
    # Named first: a range would bring the newest torch, and what it needs for CUDA.
    for what in (TORCH, wheel):
        run_outside(root / "env/bin/pip", "install", "--quiet", what, cwd=root)
    return root


@pytest.fixture
def fashionbert(environment):
    """Runs a command of the installed package, and gives what it prints."""

    def run(*words: object, status: int = 0, **variables: str) -> str:
        path = os.pathsep.join([str(environment / "env/bin"), os.environ["PATH"]])
        return run_outside(
            environment / "env/bin/fashionbert", *words, cwd=environment, status=status, PATH=path, COLUMNS="200",
            **variables,
        )  # fmt: skip

    return run


def test_the_sdist_has_what_the_build_needs_and_nothing_built(dist):
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    needed = {name for name in tracked if name.startswith(("csrc/", "fashionbert_fast/"))}
    assert needed | {"CMakeLists.txt", "setup.py", "pyproject.toml", "LICENSE", "README.md"} <= names
    assert not [name for name in names if name.endswith(".so")]


def test_the_wheel_has_a_library_a_level_and_its_tag_says_which_python(wheel, capsys):
    names = zipfile.ZipFile(wheel).namelist()
    levels = {name.split(".")[1] for name in names if name.startswith("fashionbert_fast/_C.")}
    assert levels == (set(cpu.LEVELS) if os.uname().machine == "x86_64" else {"baseline"})
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"fashionbert_fast"}
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"  # of pybind11's _host
    assert f"-{python}-{python}-linux_{os.uname().machine}.whl" in wheel.name
    with capsys.disabled():
        print(f"\n{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MiB")


@pytest.mark.skipif(shutil.which("readelf") is None, reason="reads libraries by readelf")
def test_no_library_has_a_run_path(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        libraries = [archive.extract(name, tmp_path) for name in archive.namelist() if name.endswith(".so")]
    assert libraries
    assert not re.findall(r"RPATH|RUNPATH", run_outside("readelf", "-d", *libraries, cwd=tmp_path))


def test_no_library_says_where_it_was_built(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = b"".join(archive.read(name) for name in archive.namelist())
    assert b"csrc/" in held  # what checks say of themselves
    assert [path for path in (str(ROOT), sys.prefix, "/build-via-sdist-") if path.encode() in held] == []


def test_doctor_says_which_level_is_used(fashionbert):
    best = next(level for level, needs in cpu.LEVELS.items() if cpu.flags().issuperset(needs))
    assert f"{best} is used" in fashionbert("doctor")
    assert "baseline is used" in fashionbert("doctor", FASHIONBERT_CPU_LEVEL="baseline")


def test_bench_asks_for_a_checkout(fashionbert):
    (line,) = fashionbert("bench", "ops", status=2).splitlines()
    assert line.startswith("fashionbert bench: error: ") and "checkout" in line


def test_demo_and_pretrain_run_outside_a_checkout(fashionbert, environment):
    fashionbert("demo", "--out", "demo", "--products", 1400, "--queries", 20, "train.steps=10", "validation.every=0",
                "contrastive.first_steps=5")  # fmt: skip
    assert (environment / "demo/report.html").exists()
    smaller = ("model.hidden_size=64", "model.layers=1", "model.heads=2", "model.intermediate_size=128")
    for level, needs in cpu.LEVELS.items():
        if cpu.flags().issuperset(needs):
            said = fashionbert(
                "pretrain", "--config", "article", "data.store=demo/store", f"train.output=run-{level}",
                "model.core=null",
                *smaller, "train.steps=3", "train.micro_batch_size=8", FASHIONBERT_CPU_LEVEL=level,
            )  # fmt: skip
            assert "3 steps done" in said
