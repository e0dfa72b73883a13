"""What the evaluator gives those that know nothing: figures known beforehand."""

from __future__ import annotations

import pytest

from fashionbert_fast.baselines.system import Scorer
from fashionbert_fast.baselines.systems import fit
from fashionbert_fast.evaluation import evaluate


@pytest.fixture(scope="module")
def result(planted, core):
    """result("random"): evaluated on all products, 40 candidates each."""

    def of(name: str):
        scorer = Scorer(fit(name, planted, core=core), planted)
        return evaluate(planted, planted.rows(), scorer.score, queries=256, candidates=40)

    return of


def test_random_numbers_find_k_of_the_candidates(result):
    for direction in ("image_to_text", "text_to_image"):
        found = result("random")[direction]
        assert found["R@10"] == pytest.approx(10 / 40, abs=0.09) and found["R@1"] == pytest.approx(1 / 40, abs=0.04)


def test_the_category_ties_within_a_list_and_finds_nothing(result):
    found = result("category")
    assert found["image_to_text"]["R@10"] == found["text_to_image"]["R@10"] == 0
    assert found["random_ties"]["image_to_text"]["R@10"] == pytest.approx(10 / 40)


def test_one_side_alone_ties_in_one_direction_and_guesses_in_the_other(result):
    text, photo = result("text"), result("photo")
    assert text["text_to_image"]["R@10"] == photo["image_to_text"]["R@10"] == 0
    assert text["image_to_text"]["R@10"] == pytest.approx(10 / 40, abs=0.09)
    assert photo["text_to_image"]["R@10"] == pytest.approx(10 / 40, abs=0.09)
