"""Protocol "queries": figures by hand, chance, ties, and a checkpoint's by its vectors one at a time."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from in_process import run_here
from training import fashionbert, on_two_processes

from fashionbert_fast import FashionBertForPreTraining
from fashionbert_fast.catalogue.queries import listed
from fashionbert_fast.catalogue.twins import normalised_title
from fashionbert_fast.data.pairs import collate_pairs
from fashionbert_fast.data.tokenizer import load_tokenizer
from fashionbert_fast.evaluation.ranking.query_to_item import FIGURES, chances, evaluate_queries, figures
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.run_directory import resolve_model_dir


def by_hand(cosines: list[float], right: list[bool]) -> list[float]:
    order = sorted(range(len(cosines)), key=lambda i: (-cosines[i], right[i]))
    places = [place for place, i in enumerate(order, 1) if right[i]]
    recalls = [sum(place <= k for place in places) / min(k, len(places)) for k in (1, 10, 100)]
    gain = sum(1 / np.log2(1 + place) for place in places if place <= 10)
    ideal = sum(1 / np.log2(1 + place) for place in range(1, 1 + min(10, len(places))))
    return [*recalls, 1 / places[0], gain / ideal]


@pytest.mark.parametrize("items", [3, 40, 300])
def test_figures_are_those_by_hand_ties_and_all(items):
    generator = np.random.default_rng(items)
    cosine_QN = generator.integers(0, 20, (50, items)) / 20  # many of them tie
    right_QN = generator.random((50, items)) < 0.1
    right_QN[:, 0] |= ~right_QN.any(1)
    expected = [by_hand(list(cosines), list(right)) for cosines, right in zip(cosine_QN, right_QN, strict=True)]
    np.testing.assert_allclose(figures(cosine_QN, right_QN), expected, rtol=1e-12)


def test_a_perfect_a_constant_and_a_guessing_model():
    generator = np.random.default_rng(0)
    right_QN = np.zeros((2000, 120), dtype=bool)
    for row, count in zip(right_QN, generator.integers(1, 30, 2000), strict=True):
        row[generator.choice(120, count, replace=False)] = True
    assert (figures(right_QN.astype(np.float32), right_QN) == 1).all()
    constant_QM = figures(np.zeros(right_QN.shape), right_QN)  # right items stand last
    assert (constant_QM[:, [0, 1, 4]] == 0).all() and (constant_QM[:, 3] == 1 / (121 - right_QN.sum(1))).all()
    guessed_QM = figures(generator.random(right_QN.shape), right_QN)
    for column, chance in enumerate(chances(right_QN.sum(1), 120)):
        assert abs(guessed_QM[:, column].mean() - chance) < 4 * guessed_QM[:, column].std() / 2000**0.5
    with pytest.raises(ValueError, match="1 of 240000 are NaN"):
        figures(np.where(np.arange(right_QN.size) == 7, np.nan, 0).reshape(right_QN.shape), right_QN)


@pytest.fixture(scope="module")
def run(asked_path, tmp_path_factory):
    return run_here(asked_path, tmp_path_factory.mktemp("queries") / "run", "queries.weight=1", "train.steps=4")


def test_a_checkpoints_figures_are_those_of_its_vectors_one_at_a_time(run, asked_path):
    store, model = FeatureStore.open(asked_path), FashionBertForPreTraining.from_pretrained(run)
    tokenizer, rows = load_tokenizer(resolve_model_dir(run)), store.rows("train")
    own = [{normalised_title(query) for query in listed(cell)} for cell in store.queries]
    queries = sorted(set().union(*(own[row] for row in rows)))
    right = [[any(query in own[twin] for twin in np.flatnonzero(store.twin_N == store.twin_N[row])) for row in rows]
             for query in queries]  # fmt: skip
    result = evaluate_queries(run, asked_path, split="train", batch_size=5)
    titles = TitlesOf(store, tokenizer)
    with torch.inference_mode():
        item_NH = torch.cat(
            [model.vectors(collate_pairs(store, titles.tokens, *[np.array([row])] * 2)) for row in rows]
        )
        query_QH = torch.cat([titles.query_vector(model, query) for query in queries])
    expected = figures((query_QH @ item_NH.T).numpy(), np.array(right)).mean(0)
    assert list(result["query_to_item"]) == list(FIGURES)
    np.testing.assert_allclose(list(result["query_to_item"].values()), expected, atol=0.02)  # near ties change places
    assert (result["queries"], result["items"]) == (len(queries), len(rows))
    other = evaluate_queries(run, asked_path, split="train", batch_size=64)
    np.testing.assert_allclose(list(other["query_to_item"].values()), expected, atol=0.02)


class TitlesOf:
    def __init__(self, store, tokenizer):
        from fashionbert_fast.data.titles import TokenizedTitles

        self.tokens, self.tokenizer = TokenizedTitles(store.titles, tokenizer, 64), tokenizer

    def query_vector(self, model, query: str) -> torch.Tensor:
        """Segment 2 by hand: the text's embeddings, the encoder, the mean."""
        from fashionbert_fast.model.encoder import Packing

        ids_L = torch.tensor(self.tokenizer(query)["input_ids"])
        text_LH = model.text_embeddings(ids_L, torch.arange(len(ids_L)), torch.full_like(ids_L, 2))
        hidden_LH = model.encoder(text_LH, Packing(torch.tensor([0, len(ids_L)], dtype=torch.int32), len(ids_L)))
        return torch.nn.functional.normalize(hidden_LH.mean(0), dim=0)[None]


def test_two_ranks_give_the_same_bits_as_one(run, asked_path, tmp_path):
    words = ["evaluate", "--protocol", "queries", "--split", "train", "--batch-size", "4", "--device", "cpu",
             "--checkpoint", str(run), "--data", str(asked_path), "--json"]  # fmt: skip
    done = fashionbert(*words, str(tmp_path / "one.json"))
    assert done.returncode == 0, done.stderr
    done = on_two_processes(*words, str(tmp_path / "two.json"))
    assert done.stdout.count("protocol queries") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.json", "two.json"]
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    work, shared = one.pop("throughput"), two.pop("throughput")
    assert (work["ranks"], shared["ranks"]) == (1, 2) and work["sequences"] == shared["sequences"] > 0
    assert one == two


def test_held_out_queries_that_training_knows_are_told_apart(run, asked_path):
    store = FeatureStore.open(asked_path)
    asked = {split: {normalised_title(query) for row in store.rows(split) for query in listed(store.queries[row])}
             for split in ("train", "validation")}  # fmt: skip
    result = evaluate_queries(run, asked_path)
    unseen = len(asked["validation"] - asked["train"])
    assert result["queries"] == len(asked["validation"]) and result["unseen"]["queries"] == unseen
    assert ("query_to_item" in result["unseen"]) == (unseen > 0)
    assert 0 < result["chance"]["R@1"] < result["chance"]["R@10"] <= 1
    some, again = (evaluate_queries(run, asked_path, split="train", queries=3, seed=1) for _ in range(2))
    assert some["queries"] == 3 and some | {"throughput": None} == again | {"throughput": None}


def test_the_command(run, asked_path, store_path, tmp_path):
    words = ["evaluate", "--checkpoint", str(run), "--protocol", "queries"]
    done = fashionbert(*words, "--data", str(asked_path), "--json", str(tmp_path / "queries.json"))
    assert done.returncode == 0 and "NDCG@10" in done.stdout and "chance" in done.stdout, done.stderr
    result = json.loads((tmp_path / "queries.json").read_text())
    assert result["protocol"] == "queries" and result["query_to_item"].keys() == result["intervals"].keys()
    for more, said in (
        (["--data", str(store_path)], f"{store_path}: no product of split 'validation' has a query; prepare it with"),
        (["--data", str(asked_path), "--split", "test"], "split 'test' has no products"),
        (["--data", str(asked_path), "--queries", "0"], "queries: 0 is not a number of queries"),
        (["--data", str(asked_path), "--grouping", "released-faulty"], "--grouping released-faulty: exists only under"),
    ):
        done = fashionbert(*words, *more)
        assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
