"""`fashionbert compare`: the tests are those of the books, and only runs on the same lists are compared."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import binomtest, wilcoxon
from training import fashionbert

from fashionbert_fast.evaluation.ranking.protocols import candidate_lists, score_lists, summarise
from fashionbert_fast.evaluation.reports.comparison import compare, mcnemar, permutation
from fashionbert_fast.evaluation.reports.scores import read_scores, write_scores


def write(path, store, score, lists="one", candidates=21):
    drawn = candidate_lists(
        store, store.rows(None), protocol="fashionbert", queries=None, candidates=candidates, seed=0
    )  # fmt: skip
    scored = score_lists(drawn, store.rows(None), score)
    write_scores(path, store, scored, lists=lists, run=path.stem)
    return summarise(store, scored, protocol="fashionbert", seed=0)


def noisy(strength, seed):
    """Knows the truth, less so the weaker it is."""
    noise = np.random.default_rng(seed).standard_normal((300, 300))
    return lambda text, image: 1 / (1 + np.exp(-(noise[text, image] + strength * (text == image) - strength / 2)))


@pytest.fixture
def store(make_products):
    return make_products({("a", "b"): 120, ("a", "c"): 80})


def test_the_file_gives_back_the_figures(store, tmp_path):
    result = write(tmp_path / "a.parquet", store, noisy(2, 0))
    found = read_scores(tmp_path / "a.parquet")
    assert found.queries == sorted(store.ids) and (found.lists, found.run) == ("one", "a")
    for direction, ranks in found.ranks.items():
        assert {f"R@{k}": ranks.recall(k) for k in (1, 5, 10)} == result[direction]
    assert found.right_Q.mean() == result["alignment_accuracy"]


def test_a_better_model_is_found_better_and_its_own_equal_is_not(store, tmp_path):
    weak, strong = (
        write(tmp_path / "weak.parquet", store, noisy(1, 0)),
        write(tmp_path / "strong.parquet", store, noisy(3, 1)),
    )
    a, b = read_scores(tmp_path / "weak.parquet"), read_scores(tmp_path / "strong.parquet")
    rows = {(row["direction"], row["metric"]): row for row in compare(a, b)["rows"]}
    assert len(rows) == 9
    for (direction, metric), row in rows.items():
        if metric.startswith("R@"):
            assert (row["a"], row["b"]) == (weak[direction][metric], strong[direction][metric])
        assert row["difference"] == pytest.approx(row["b"] - row["a"]) and row["p"] < 0.01
        assert 0 < row["interval"][0] < row["difference"] < row["interval"][1]
    for row in compare(a, a)["rows"]:
        assert (row["difference"], row["interval"], row["p"]) == (0, [0, 0], 1)
    back = {(row["direction"], row["metric"]): row for row in compare(b, a)["rows"]}
    for key, row in rows.items():
        assert back[key]["difference"] == -row["difference"] and back[key]["p"] == row["p"]


def test_equal_models_are_found_different_one_time_in_twenty(make_products, tmp_path):
    """Differences of two models that are equally good, drawn 400 times."""
    rng = np.random.default_rng(0)
    found = np.zeros(2)
    for seed in range(400):
        ranks = rng.integers(1, 30, (2, 150))
        found[0] += mcnemar((ranks[0] <= 5) * 1.0 - (ranks[1] <= 5)) < 0.05
        found[1] += permutation(1 / ranks[0] - 1 / ranks[1], seed=seed, permutations=400) < 0.05
    assert (found / 400 < 0.08).all() and (found / 400 > 0.015).all()


@pytest.mark.parametrize("better,worse", [(0, 0), (1, 0), (7, 2), (30, 31), (400, 300), (3000, 2800)])
def test_mcnemar_is_the_exact_binomial_test(better, worse):
    differences = np.array([1.0] * better + [-1.0] * worse + [0.0] * 5)
    expected = binomtest(better, better + worse).pvalue if better + worse else 1.0
    assert mcnemar(differences) == pytest.approx(expected)


def test_the_permutation_test_is_that_of_all_signs():
    differences = np.array([1.0, 2.0, 3.0, 4.0, 5.0, -6.0, 7.0, 8.0])  # its own ranks: Wilcoxon's sums are these
    expected = wilcoxon(differences, method="exact").pvalue
    assert permutation(differences, seed=0, permutations=40_000) == pytest.approx(expected, abs=0.005)


def test_other_lists_are_refused(store, tmp_path):
    write(tmp_path / "a.parquet", store, noisy(1, 0))
    write(tmp_path / "b.parquet", store, noisy(1, 0), lists="two")
    done = fashionbert("compare", str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet"))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "b.parquet: other candidate lists than" in done.stderr and "--candidates-from" in done.stderr


def test_the_command_prints_and_writes(store, tmp_path):
    for name, strength in (("a", 1), ("b", 3)):
        write(tmp_path / f"{name}.parquet", store, noisy(strength, 5))
    files = [str(tmp_path / name) for name in ("a.parquet", "b.parquet", "compared.json")]
    done = fashionbert("compare", *files[:2], "--json", files[2])
    assert done.returncode == 0, done.stderr
    assert "image -> text" in done.stdout and "R@10" in done.stdout and "200 queries" in done.stdout
    rows = json.loads((tmp_path / "compared.json").read_text())["rows"]
    assert {row["test"] for row in rows} == {"McNemar, exact", "permutation"}


@pytest.mark.parametrize("what", ["nowhere", "text", "other columns", "one direction"])
def test_what_holds_no_scores_is_one_line(store, tmp_path, what):
    good, bad = tmp_path / "a.parquet", tmp_path / "bad.parquet"
    write(good, store, noisy(1, 0))
    if what == "text":
        bad.write_text("no parquet")
    elif what == "other columns":
        pq.write_table(pa.table({"query": ["1"]}), bad)
    elif what == "one direction":
        pq.write_table(pq.read_table(good).slice(0, 200), bad)
    done = fashionbert("compare", str(good), str(bad))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "bad.parquet" in done.stderr
