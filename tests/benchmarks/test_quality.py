"""`python -m benchmarks.quality`: tiny systems on a tiny store, what is done once, tests that are really paired."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from bert_directory import TINY, bert_directory
from conftest import TINY_MODEL, write_store
from training import own_traces

from benchmarks.measurements import BEGIN, END
from benchmarks.quality import __main__ as command
from benchmarks.quality import page, report, runs
from benchmarks.quality.systems import NO_ITC, Baseline, Sizes, Variant, systems, variants
from fashionbert_fast.errors import InputError
from fashionbert_fast.evaluation.ranking.ranks import Ranks
from fashionbert_fast.evaluation.reports.scores import QueryScores, read_scores

SIZES = Sizes(
    overrides=("model.core=null", *TINY_MODEL, "train.steps=4", "train.micro_batch_size=8", "train.precision=fp32",
               "contrastive.first_steps=2", "contrastive.subcategory_steps=0", "contrastive.batch_size=8",
               "validation.every=2", "validation.pairs=8"),
    epochs=1, queries=20, candidates=9,
)  # fmt: skip
SYSTEMS = ("cca", "random", "random+cca", "small", "cls-head")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("stores") / "store", products=192, test=True)


@pytest.fixture(scope="module")
def ask(store, tmp_path_factory):
    """`ask(folder, system...)`: the command with tiny sizes; returns its status and what it wrote."""
    core = bert_directory(tmp_path_factory.mktemp("cores") / "bert", **TINY)

    def of(folder, *only: str, seeds: int = 1, stores=(("toy", store),), sizes: Sizes = SIZES, more: tuple = ()):
        path = folder / "quality.json"
        words = ["--json", str(path), "--seeds", str(seeds), "--quick", *more]
        words += [word for name, at in stores for word in ("--store", f"{name}={at}")]
        words += [word for name in only for word in ("--only", name)]
        with pytest.MonkeyPatch.context() as patch, own_traces():
            patch.setattr(command, "QUICK", replace(sizes, core=str(core)))
            patch.setattr(command, "systems", lambda: (*systems(), Baseline("random+cca")))
            status = command.main(words)
        return status, json.loads(path.read_text()) if path.exists() else None

    return of


@pytest.fixture(scope="module")
def measured(ask, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quality")
    return folder, *ask(folder, *SYSTEMS, seeds=2)


def test_the_file_holds_the_contract_and_every_system(measured):
    _, status, result = measured
    assert status == 0 and result["failed"] == []
    assert {"device", "versions", "commit", "rows", "machine", "settings", "systems", "tests"} <= set(result)
    assert [of["system"] for of in result["systems"]] == ["cca", "random", "small", "cls-head", "random+cca"]
    assert (result["settings"]["queries"], result["settings"]["candidates"]) == (20, 9)
    assert result["machine"]["cores"] >= 1
    for row in result["rows"]:
        assert set(row) == {"case", "peer", "value", "peer_value", "unit", "ratio", "target", "met", "spread"}
        assert row["met"] == (row["ratio"] >= 1)
    for of in result["systems"]:
        assert of["seeds"] == 2 and len(of["minutes_by_seed"]) == 2 and of["minutes"] > 0
        scores = {"match", "similarity", "sum", "shortlist"} if of["kind"] == "fashionbert" else {"similarity"}
        assert set(of["scores"]) == scores and of["score"] in scores
        chosen = of["scores"][of["score"]]
        assert chosen["validation"] == max(found["validation"] for found in of["scores"].values())
        low, high = chosen["intervals"]["both"]["R@10"]
        assert low <= chosen["both"]["R@10"] <= high
    by = {of["system"]: of for of in result["systems"]}
    assert by["cca"]["scores"]["similarity"]["both"]["R@1"] > by["random"]["scores"]["similarity"]["both"]["R@1"]


def test_everything_is_compared_with_the_best_baseline_and_scores_with_similarity(measured):
    tests = measured[2]["tests"]
    against = {(test["system"], test["against"], test["score"], test["against_score"]) for test in tests}
    best = {peer for system, peer, *_ in against if peer != system}
    assert len(best) == 1 and best <= {"cca", "random+cca"}
    assert {system for system, peer, *_ in against if peer != system} == set(SYSTEMS) - best
    own = {(score, other) for system, peer, score, other in against if system == peer == "small"}
    assert own == {("match", "similarity"), ("sum", "similarity"), ("shortlist", "similarity")}
    assert {test["metric"] for test in tests} == {"R@1", "R@10", "alignment accuracy"}


def test_the_figures_are_those_of_the_saved_ranks(measured):
    """By hand from the Parquet files: the mean over seeds and queries of being found first."""
    folder, _, result = measured
    (small,) = (of for of in result["systems"] if of["system"] == "small")
    hits = []
    for job in (folder / "quality.json.work" / "toy").glob("fashionbert-*"):
        settings = json.loads((job / "trained.json").read_text())["settings"]
        if settings["model"]["alignment_head"] != "cls":
            (scores,) = job.glob("evaluation-*/similarity.parquet")
            hits.append((read_scores(scores).ranks["text_to_image"].rank_Q == 1).mean())
    assert len(hits) == 2
    assert small["scores"]["similarity"]["text_to_image"]["R@1"] == pytest.approx(np.mean(hits))


def test_nothing_is_done_twice(measured, ask, monkeypatch):
    folder, _, result = measured
    for name in ("_fit", "_pretrain", "run_evaluation"):
        monkeypatch.setattr(runs, name, lambda *_, **__: pytest.fail("done again"))
    status, again = ask(folder, *SYSTEMS, seeds=2)
    assert status == 0 and again["systems"] == result["systems"] and again["tests"] == result["tests"]
    assert not list(folder.glob("quality.json.work/*/*/run/checkpoints/*/state"))


def test_collecting_trains_nothing_and_takes_as_many_seeds_as_are_done(measured, ask, tmp_path, monkeypatch):
    folder, _, result = measured
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for name in ("_fit", "_pretrain", "run_evaluation"):
        monkeypatch.setattr(runs, name, lambda *_, **__: pytest.fail("done"))
    for run in tmp_path.glob("quality.json.work/*/*/run"):
        shutil.rmtree(run)  # what is compared are answers
    (lost,) = tmp_path.glob("quality.json.work/toy/cca-1-*/evaluation-*/result.json")
    lost.unlink()
    status, collected = ask(tmp_path, *SYSTEMS, seeds=3, more=("--collect",))
    assert status == 0 and {of["system"] for of in collected["systems"]} == set(SYSTEMS)
    seeds = {of["system"]: of["seeds"] for of in collected["systems"]}
    assert seeds["cca"] == 1 and seeds["random"] == 2
    theirs = {of["system"]: of["scores"] for of in result["systems"]}
    assert all(of["scores"] == theirs[of["system"]] for of in collected["systems"] if seeds[of["system"]] == 2)


def test_other_settings_and_another_store_are_done_anew(store, tmp_path):
    stock, work = runs.open_stocks({"toy": store})[0], tmp_path
    job = runs.Job(stock, Variant("small"), 0, SIZES, work)
    others = [
        replace(job, seed=1), replace(job, sizes=replace(SIZES, overrides=(*SIZES.overrides, "train.steps=6"))),
        replace(job, system=Variant("x", NO_ITC)), replace(job, stock=replace(stock, content="0" * 64)),
    ]  # fmt: skip
    assert len({of.key for of in (job, *others)}) == 5
    assert replace(job, system=Variant("another name")).folder == job.folder


def test_a_lost_evaluation_is_done_from_the_trained_model(ask, tmp_path, monkeypatch):
    first = ask(tmp_path, "cca")[1]
    for folder in tmp_path.glob("quality.json.work/toy/*/evaluation-*"):
        shutil.rmtree(folder)
    monkeypatch.setattr(runs, "_fit", lambda *_: pytest.fail("fitted again"))
    status, again = ask(tmp_path, "cca")
    assert status == 0 and again["systems"] == first["systems"]


def test_an_interrupt_is_told_and_its_seconds_are_kept(ask, tmp_path, monkeypatch, capsys):
    def interrupted(job, _):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs, "_fit", interrupted)
        status, result = ask(tmp_path, "category", "cca")
    assert status == 2 and "goes on from there" in capsys.readouterr().err and result["systems"] == []
    (spent,) = tmp_path.glob("quality.json.work/toy/*/time.json")
    assert json.loads(spent.read_text())["ended"] == 1
    spent.write_text(json.dumps({"seconds": 600.0, "begun": 2, "ended": 1}))  # and then it was killed once
    status, result = ask(tmp_path, "category", "cca")
    by = {of["system"]: of for of in result["systems"]}
    assert status == 0 and by["cca"]["minutes"] > 10 and by["cca"]["minutes_at_least"]
    assert not by["category"]["minutes_at_least"]


def test_one_that_fails_is_named_and_costs_the_others_nothing(ask, tmp_path, monkeypatch):
    fit = runs._fit
    monkeypatch.setattr(runs, "_fit", lambda job, parts: fit(job, parts) if job.system.name == "category" else 1 / 0)
    status, result = ask(tmp_path, "category", "cca")
    assert status == 1 and [of["system"] for of in result["systems"]] == ["category"]
    assert [proof["proof"] for proof in result["failed"]] == ["toy/cca, seed 0, ran"]
    assert "Missing: toy/cca" in page.tables(result)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "--json"),
        (["--json", "{}/x.json"], "--store"),
        (["--json", "{}/x.json", "--store", "{store}"], "--store {store}: write NAME=DIR"),
        (["--json", "{}/x.json", "--store", "a=/nowhere"], "/nowhere"),
        (["--json", "{}/x.json", "--store", "a={store}", "--only", "gpt"], "--only gpt"),
        (["--json", "{}/x.json", "--store", "a={store}", "--seeds", "0"], "--seeds"),
        (["--json", "{}/x.json", "--store", "a={plain}"], "split 'test'"),
        (["--json", "{}/x.json", "--store", "a={store}", "--store", "b={other}"], "product 11"),
        (["--json", "{}/x.json", "--docs"], "x.json"),
    ],
)
def test_bad_input_is_one_line(words, named, store, store_path, tmp_path, tmp_path_factory, capsys):
    other = write_store(tmp_path_factory.mktemp("other") / "store", products=200, test=True)
    at = {"store": store, "plain": store_path, "other": other}
    assert command.main([word.format(tmp_path, **at) for word in words]) == 2
    error = capsys.readouterr().err.strip()
    assert named.format(**at) in error and "\n" not in error


# The systems ---------------------------------------------------------------------------------------------------------
def test_every_variant_fits_the_recipe_and_differs_from_it_in_what_its_name_says():
    plain = {of.name: of.configuration(0, Sizes()) for of in variants()}
    quick = {of.name: of.configuration(0, command.QUICK) for of in variants()}
    assert {of.kind for of in systems()} == {"baseline", "fashionbert"} and len({of.name for of in systems()}) == 31
    for found in (plain, quick):
        assert [found[f"adaptive-{way}"].weighting.method for way in ("loss", "gradient", "min-norm")] == [
            "loss", "gradient", "min_norm"]  # fmt: skip
        assert found["fixed"].weighting.method == "fixed" and found["no-mpm"].weighting.preference[2] == 0
        assert found["no-mpm"].weighting.preference[:2] == found["small"].weighting.preference[:2]
        assert not found["no-itc"].contrastive.on and not found["article"].contrastive.on
        assert found["cls-head"].model.alignment_head == found["article"].model.alignment_head == "cls"
        assert [found[f"negatives-{kind}"].data.negatives for kind in ("random", "category")] == ["random", "category"]
        assert found["article"].weighting.preference == [1, 1, 1] and found["article"].weighting.method == "loss"
        assert {of.train.steps for of in found.values()} == {found["small"].train.steps}
    assert quick["small"].contrastive.on and plain["small"].train.steps > quick["small"].train.steps


# The tests -----------------------------------------------------------------------------------------------------------
def answered(rank_Q, lists: str = "l") -> QueryScores:
    ranks = Ranks(np.asarray(rank_Q) - 1, np.zeros(len(rank_Q), dtype=np.int64))
    ids = [str(i) for i in range(len(rank_Q))]
    right_Q = np.where(np.asarray(rank_Q) == 1, 1.0, 0.5)
    return QueryScores(None, lists, "run", ids, {"image_to_text": ranks, "text_to_image": ranks}, right_Q)  # pyright: ignore[reportArgumentType]


def test_the_test_is_paired_and_over_queries():
    """B finds all that A finds and 8 of 40 more; then as many, of other queries: only the first is more than luck."""
    a_Q = np.where(np.arange(40) < 20, 1, 7)
    nested_Q = np.where(np.arange(40) < 28, 1, 7)
    apart_Q = np.where(np.arange(40) >= 12, 1, 7)  # loses 12 of A's, wins 20
    a, nested, apart = (report.Answers.of([answered(of)], [0.5]) for of in (a_Q, nested_Q, apart_Q))
    first, second = report.compared(a, nested)[0], report.compared(a, apart)[0]
    assert first["difference"] == second["difference"] == pytest.approx(0.2)
    assert (first["better"], first["worse"], second["better"], second["worse"]) == (8, 0, 20, 12)
    assert first["p"] == pytest.approx(2 * 0.5**8) and second["p"] > 0.2
    assert first["interval"][0] > 0 > second["interval"][0]


def test_seeds_are_means_of_each_query_and_one_question_is_asked_of_all():
    both = report.Answers.of([answered([1, 1, 2, 9]), answered([1, 3, 3, 1])], [0.2, 0.4])
    np.testing.assert_array_equal(both.of_each("R@1"), [1, 0.5, 0, 0.5])
    np.testing.assert_array_equal(both.of_each(report.ACCURACY), [1, 0.75, 0.5, 0.75])
    assert both.validation == pytest.approx(0.3) and [of[0] for of in both.by_seed] == [0.5, 0.5]
    assert both.figures()["both"]["R@5"] == pytest.approx(7 / 8)
    other = report.Answers.of([answered([1, 1, 1, 1], lists="others")], [0.2])
    with pytest.raises(InputError, match="other candidate lists"):
        report.compared(both, other)


# The page ------------------------------------------------------------------------------------------------------------
def test_the_page_keeps_what_is_written_by_hand(measured, tmp_path):
    _, _, result = measured
    path, picture = tmp_path / "quality.md", tmp_path / "images" / "quality.png"
    path.write_text(f"# By hand\n\n{BEGIN}stale\n{END}below\n")
    page.write(result, path, picture)
    text = path.read_text()
    assert text.startswith(f"# By hand\n\n{BEGIN}20 queries") and text.endswith(f"{END}below\n") and "stale" not in text
    cca = next(of for of in result["systems"] if of["system"] == "cca")
    figure = cca["scores"]["similarity"]["both"]["R@1"]
    assert f"| cca | 2 | similarity | {figure:.3f} (" in text
    assert "| small |" in text and "](images/quality.png)" in text
    assert picture.read_bytes().startswith(b"\x89PNG")
    page.write(result, path, picture)
    assert path.read_text() == text
    path.write_text("# no place\n")
    with pytest.raises(InputError, match="has not the lines"):
        page.write(result, path, picture)


def test_the_table_says_which_are_the_same_and_what_is_not_known():
    ends = {"both": {"R@1": [0.4, 0.6], "R@10": [0.7, 0.8]}, "alignment_accuracy": [0.6, 0.65]}
    found = {"both": {"R@1": 0.5, "R@10": 0.75}, "alignment_accuracy": 0.625, "intervals": ends}
    system = {"store": "map", "system": "fixed", "kind": "fashionbert", "same_as": "small", "score": "sum",
              "seeds": 3, "minutes": 1.25, "minutes_at_least": True,
              "scores": {name: found for name in page.OF_ONE}}  # fmt: skip
    test = {"store": "map", "system": "fixed", "score": "sum", "against": "cca", "metric": "R@1", "difference": 0.125,
            "interval": [0.1, 0.15], "p": 0.0001}  # fmt: skip
    own = test | {"against": "fixed", "difference": -0.25, "interval": [-0.3, -0.2], "p": 0.25}
    result = {"settings": {"queries": 1000, "candidates": 101, "seeds": 3}, "device": "CPU", "machine": {"cores": 2},
              "commit": "c", "failed": [], "systems": [system], "tests": [test, own]}  # fmt: skip
    text = page.tables(result)
    assert "1,000 queries of the test split in each direction, 101 candidates each, means of the seeds" in text
    assert ("| fixed (as small) | 3 | sum | 0.500 (0.400 to 0.600) | 0.750 (0.700 to 0.800) | 0.625 (0.600 to 0.650) | "
            "+0.125 (+0.100 to +0.150) | < 0.001 | at least 1.2 |") in text  # fmt: skip
    assert "| fixed | 0.500 | 0.500 | 0.500; -0.250 (-0.300 to -0.200), p 0.250 | 0.500 |" in text


def test_the_page_is_what_the_rows_say():
    rows = page.ROOT / "benchmarks" / "results" / "quality.json"
    text = page.PAGE.read_text()
    assert text.count(BEGIN) == text.count(END) == 1
    if rows.exists():
        assert text == page.filled(text, json.loads(rows.read_text())), "run make results"
