"""The sum of two systems: its weight is the best of validation lists, its scores the formula's."""

from __future__ import annotations

import numpy as np
import pytest

from fashionbert_fast.baselines.combination import Sum
from fashionbert_fast.baselines.fitting import Validation
from fashionbert_fast.baselines.system import Scorer, save
from fashionbert_fast.baselines.systems import fit, load


@pytest.fixture(scope="module")
def parts(planted, core):
    return {name: fit(name, planted, core=core) for name in ("cca", "random", "category")}


@pytest.mark.parametrize("order", [("cca", "random"), ("random", "cca")])
def test_a_system_that_knows_outweighs_one_that_guesses(planted, parts, order):
    validation = Validation(planted, planted.rows("validation"), 0)
    together = Sum.of(tuple(parts[name] for name in order), validation)
    assert together.fitted["validation_recall"] >= validation.of(parts["cca"])
    assert (together.options["weight"] > 0.5) == (order[1] == "cca")


def test_scores_are_the_formula_s_and_survive_the_disk(planted, parts, tmp_path):
    validation = Validation(planted, planted.rows("validation"), 0)
    together = Sum.of((parts["cca"], parts["category"]), validation)
    text, image = (side.ravel() for side in np.meshgrid(np.arange(20), np.arange(20)))
    first, second = (Scorer(parts[name], planted).score(text, image) for name in ("cca", "category"))
    w, (a, b) = together.options["weight"], together.options["scales"]
    expected = (1 - w) * first / a + w * second / b
    np.testing.assert_allclose(Scorer(together, planted).score(text, image), expected, atol=1e-6)
    save(together, tmp_path / "sum")
    np.testing.assert_allclose(Scorer(load(tmp_path / "sum", planted), planted).score(text, image), expected, atol=1e-6)
