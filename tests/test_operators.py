"""Every operator is in all its places: a schema, a CPU file, a GPU leg, a reference, tests, a benchmark, a row of the
docs. What is missing is named; what stands in a place without being listed is named too.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch

from benchmarks.run import SUITES
from fashionbert_fast import kernels
from fashionbert_fast.operators import OPERATORS, Operator, table

ROOT = Path(__file__).parent.parent
NAMES = [operator.name for operator in OPERATORS]
SCHEMAS = re.findall(r'm\.def\(\s*"(\w+)\(', (ROOT / "csrc" / "schema.cpp").read_text())


def missing(operator: Operator, root: Path = ROOT, schemas: list[str] = SCHEMAS) -> list[str]:
    """The places where ``operator`` is not."""
    name = operator.name
    files = [
        f"fashionbert_fast/kernels/{name}.py",
        f"csrc/cpu/{name}.cpp",
        operator.gpu_file,
        f"tests/kernels/test_{name}.py",
        f"benchmarks/ops/bench_{name}.py",
    ]
    found = [file for file in files if not (root / file).is_file()]
    found += [f"csrc/schema.cpp: {schema}" for schema in operator.schemas + operator.composed if schema not in schemas]

    def holds(file: str, text: str, what: str) -> None:
        if (root / file).is_file() and text not in (root / file).read_text():
            found.append(f"{file}: {what}")

    sources = [file for file in files if file.endswith((".cpp", ".cu"))]
    for source in sources:
        holds("CMakeLists.txt", f"  {source}", f"{source} among the sources")
    holds(files[0], "_reference(", "a reference")
    for schema in operator.schemas:
        holds(files[1], f'm.impl("{schema}"', f"a CPU kernel of {schema}")
        if operator.gpu == "Triton":
            holds(files[0], f'impl("fashionbert_fast::{schema}", "CUDA")', f"a CUDA kernel of {schema} registered")
        else:
            holds(files[2], f'm.impl("{schema}"', f"a CUDA kernel of {schema}")
    holds(files[3], "opcheck", "an opcheck")
    holds("docs/operators.md", f"[`{name}`]", f"a row of {name}")
    return found


@pytest.mark.parametrize("operator", OPERATORS, ids=NAMES)
def test_an_operator_is_in_all_its_places(operator):
    assert missing(operator) == []


@pytest.mark.parametrize("operator", OPERATORS, ids=NAMES)
def test_the_dispatcher_has_its_kernels(operator):
    importlib.import_module(f"fashionbert_fast.kernels.{operator.name}")
    for schema in operator.schemas:
        for device in ("CPU", "CUDA") if operator.gpu == "Triton" else ("CPU",):  # CUDA C++ is built where nvcc is
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fashionbert_fast::{schema}", device), schema


def test_nothing_stands_in_a_place_without_being_listed():
    assert sorted(SCHEMAS) == sorted(schema for o in OPERATORS for schema in o.schemas + o.composed)
    for folder, suffix in (("csrc/cpu", ".cpp"), ("csrc/cuda", ".cu"), ("fashionbert_fast/kernels/triton", ".py")):
        found = {path.stem for path in (ROOT / folder).glob(f"*{suffix}")} - {
            "__init__",
            "column_sums",
            "dropout",
        }  # shared
        assert found <= set(NAMES), folder
    public = {name for name in kernels.__all__ if name.islower()}  # functions
    assert public == set(NAMES) - {"task_gradients"}  # which the weighting's gate alone calls
    assert sorted(NAMES) == NAMES


def test_the_benchmarks_and_the_docs_are_derived():
    assert set(NAMES) <= set(SUITES["ops"])
    assert table() in (ROOT / "docs" / "operators.md").read_text(), (
        "docs/operators.md: its table is not operators.table()"
    )


def test_every_missing_place_is_named(tmp_path):
    toy = Operator("toy", ("toy", "toy_backward"), "CUDA C++", "nothing")
    everywhere = missing(toy, tmp_path)
    for place in (
        "kernels/toy.py",
        "csrc/cpu/toy.cpp",
        "csrc/cuda/toy.cu",
        "test_toy.py",
        "bench_toy.py",
        "schema.cpp: toy",
    ):
        assert any(place in found for found in everywhere), place
    (tmp_path / "CMakeLists.txt").write_text("set(CPU_SOURCES\n  csrc/schema.cpp)\n")
    assert "CMakeLists.txt: csrc/cpu/toy.cpp among the sources" in missing(toy, tmp_path)
    kernel = tmp_path / "fashionbert_fast" / "kernels" / "toy.py"
    kernel.parent.mkdir(parents=True)
    kernel.write_text("def toy(): ...\n")
    assert "fashionbert_fast/kernels/toy.py: a reference" in missing(toy, tmp_path)
