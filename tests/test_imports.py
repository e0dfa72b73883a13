"""The package has one way up: no package imports one of a floor above its own, and none goes in circles."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fashionbert_fast"
# From the ground up; docs/architecture.md says what lives where. A name is a package or a module of the top level.
FLOORS = (
    "cpu", "errors", "checks", "operators", "files", "progress", "distributed", "run_directory", "kernels",
    "catalogue", "features", "data", "model", "objectives", "config", "processor", "profiling", "inference", "engine",
    "evaluation", "baselines", "retrieval", "export", "demo", "commands", "cli",
)  # fmt: skip
TOP = {"__init__", "__main__"}  # what people import, and `python -m`: above everything
MODULES = sorted(PACKAGE.rglob("*.py"))


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def _is_module(path: Path) -> bool:
    return path.is_dir() or path.with_suffix(".py").exists()


def _imported(path: Path) -> set[str]:
    """Modules of the package that the file imports, anywhere, without `fashionbert_fast.`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fashionbert_fast":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            first, *rest = name.split(".")
            while rest and not (
                (PACKAGE.joinpath(*rest)).is_dir() or PACKAGE.joinpath(*rest).with_suffix(".py").exists()
            ):
                rest.pop()  # the name of something inside the module
            if first == "fashionbert_fast" and rest:
                found.add(".".join(rest))
    return found


IMPORTS = {_name(path): _imported(path) for path in MODULES}


def test_every_package_has_its_floor():
    assert {name.split(".")[0] for name in IMPORTS} - TOP == set(FLOORS)


@pytest.mark.parametrize("module", sorted(IMPORTS))
def test_imports_go_down(module):
    own = module.split(".")[0]
    if own in TOP:
        return
    for other in IMPORTS[module]:
        floor = other.split(".")[0]
        assert floor in FLOORS and FLOORS.index(floor) <= FLOORS.index(own), f"{module} imports {other}, a floor above"


def test_no_circles():
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module not in done:
            for other in IMPORTS.get(module, ()):
                visit(other, (*way, module))
            done.add(module)

    for module in IMPORTS:
        visit(module, ())


def test_a_circle_and_a_way_up_are_seen(tmp_path):
    """Of this file: what it reads out of imports of every form."""
    (tmp_path / "module.py").write_text(
        "import fashionbert_fast.cli\nfrom fashionbert_fast import kernels, errors\n"
        "def f():\n    from fashionbert_fast.engine.train import pretrain\n"
        "if TYPE_CHECKING:\n    from fashionbert_fast.demo.run import run_demo\n"
    )
    assert _imported(tmp_path / "module.py") == {"cli", "kernels", "errors", "engine.train", "demo.run"}
