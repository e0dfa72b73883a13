"""`fashionbert evaluate` around the protocols: options, errors before the work, table, file."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from fashionbert_fast.commands import evaluate as command
from fashionbert_fast.distributed import pick_device
from fashionbert_fast.errors import InputError
from fashionbert_fast.evaluation import evaluate, run
from fashionbert_fast.evaluation.ranking.choice import Ranked
from fashionbert_fast.evaluation.ranking.protocols import candidate_lists, score_lists, summarise
from fashionbert_fast.evaluation.reports.table import table
from fashionbert_fast.evaluation.run import split_rows


def parse(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(["--checkpoint", "runs/first", "--data", "stores/shop", *options])


def drawn(result) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table(result))
    return console.export_text()


def test_defaults():
    args = parse()
    assert (args.grouping, args.released_batch_size, args.json, args.recognition) == ("correct", 64, None, None)
    assert all(getattr(args, name) is None for name in command.DRAWN)
    assert command.DRAWN == {
        "split": "validation", "protocol": "fashionbert", "queries": None, "candidates": 101, "seed": 0
    }  # fmt: skip


@pytest.mark.parametrize("path", ["a_directory", "a_file/evaluation.json", "nowhere/evaluation.json"])
def test_unwritable_json_is_refused_before_the_work(tmp_path, monkeypatch, path):
    (tmp_path / "a_directory").mkdir()
    (tmp_path / "a_file").write_text("")
    monkeypatch.setattr(run, "run_evaluation", lambda *args, **options: pytest.fail("work was started"))
    with pytest.raises(InputError, match=path) as caught:
        command.run(parse("--json", str(tmp_path / path)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("option", ["--gallery", "--scores", "--save-candidates"])
def test_other_unwritable_files_are_refused_too(tmp_path, monkeypatch, option):
    monkeypatch.setattr(run, "run_evaluation", lambda *args, **options: pytest.fail("work was started"))
    with pytest.raises(InputError, match="nowhere"):
        command.run(parse(option, str(tmp_path / "nowhere" / "file")))


@pytest.mark.parametrize("option", ["--split=all", "--protocol=full", "--queries=3", "--candidates=7", "--seed=0"])
def test_lists_that_were_saved_are_not_drawn_as_well(option):
    with pytest.raises(InputError, match=rf"{option.split('=')[0]}: the lists of lists.json have theirs"):
        command.run(parse("--candidates-from", "lists.json", option))


def test_batch_size_must_be_positive():
    with pytest.raises(InputError, match="--batch-size: 0"):
        command.run(parse("--batch-size", "0"))


@pytest.mark.parametrize("name", ["graphics", "meta", "cuda:77"])
def test_a_device_that_is_not_there(name):
    with pytest.raises(InputError, match=f"--device {name}") as caught:
        pick_device(name)
    assert "\n" not in str(caught.value)


def test_empty_split_names_the_splits_there_are(make_products):
    store = make_products({("a", "b"): 3}, split="train")
    with pytest.raises(InputError, match=r"shop: split 'validation' has no products, the store has train"):
        split_rows(store, "validation", Path("shop"))
    assert len(split_rows(store, "all", Path("shop"))) == 3


def test_run_prints_the_table_and_writes_the_file(tmp_path, monkeypatch, make_products, perfect, capsys):
    store = make_products({("a", "b"): 30})

    def evaluated(_, data, *, split, protocol, seed, queries, candidates, **options):
        rows, how = store.rows(split), {"protocol": protocol, "seed": seed}
        lists = candidate_lists(store, rows, queries=queries, candidates=candidates, **how)
        scored = score_lists(lists, rows, perfect)
        ranked = Ranked({"match": scored}, "match", {}, {})
        return run.Evaluation(summarise(store, scored, **how), store, ranked, {})

    monkeypatch.setattr(run, "run_evaluation", evaluated)
    path = tmp_path / "evaluation.json"
    assert command.run(parse("--json", str(path), "--queries", "20", "--candidates", "10")) == 0
    written = json.loads(path.read_text())
    assert (written["queries"], written["candidates"], written["image_to_text"]["R@1"]) == (20, 10, 1.0)
    assert "100.00" in capsys.readouterr().out


def test_table_shows_topped_up_lists_apart_and_warns_of_leaks(make_products, perfect):
    store = make_products({("a", "b"): 110, ("c", "d"): 1})
    store.image_hashes[3] = store.image_hashes[7] = "1f"
    store.groups[4] = store.groups[8] = "one"
    result = evaluate(store, store.rows(None), perfect)
    shown = drawn(result)
    assert "own subcategory (110)" in shown and "topped up from anywhere (1)" in shown
    assert "of the very same photo: 2" in shown and "other views, which are no candidates: 2" in shown
    assert "WARNING" not in shown
    result |= {"split": "validation", "leaks": {"products": 5, "title": 4, "photo": 2, "group": 0}}
    words = " ".join(drawn(result).split())
    assert "WARNING: 5 products of split validation are known from training" in words
    assert "(4 by title, 2 by photo, 0 by group)" in words
    result["leaks"] = dict.fromkeys(result["leaks"], 0)
    assert "WARNING" not in drawn(result)


def test_table_says_what_chance_is_and_names_the_fault(make_products, perfect):
    store = make_products({("a", "b"): 110, ("c", "d"): 1})
    correct = drawn(evaluate(store, store.rows(None), perfect))
    assert "chance" in correct and "0.99" in correct and "0 from the category, 1 from anywhere" in correct
    faulty = drawn(evaluate(store, store.rows(None), perfect, grouping="released-faulty"))
    assert "FAULTY" in faulty and "50.00" in faulty and "R@100" in faulty
