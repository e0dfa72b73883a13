"""The examples in the docstrings of what people import are run."""

from __future__ import annotations

import doctest
import sys

import pytest

import fashionbert_fast
from fashionbert_fast import kernels

PUBLIC = {
    name: getattr(module, name) for module in (kernels, fashionbert_fast) for name in module.__all__ if name[0] != "_"
}
GROUPS = ("PackedRows",)  # arguments of an operator, whose example shows them


@pytest.mark.parametrize("name", sorted(PUBLIC.keys() - set(GROUPS)))
def test_the_example_of(name, shop, monkeypatch):
    monkeypatch.chdir(shop)
    public = PUBLIC[name]
    module = sys.modules[public.__module__]
    (test,) = doctest.DocTestFinder(recurse=False).find(public, name, module=module, globs=vars(module) | PUBLIC)
    assert test.examples, f"{name}: no example in its docstring"
    assert doctest.DocTestRunner(verbose=False).run(test).failed == 0
