"""The batching of PairScorer, with a model and a collation that only remember what they were given."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fashionbert_fast.evaluation import evaluate, scorer
from fashionbert_fast.evaluation.scorer import PairScorer


class Batch:
    def __init__(self, text, image, lengths):
        self.text, self.image, self.tokens = text, image, int(lengths.sum())

    def to(self, device):
        return self


class KnowsAll(torch.nn.Module):
    """Matches a title with its image by their rows; ``certainty`` scales the logits."""

    def __init__(self, certainty: float = 1.0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.certainty = certainty
        self.config = SimpleNamespace(hidden_size=2)
        self.batches: list[Batch] = []

    def alignment_logits(self, batch):
        assert not torch.is_grad_enabled() and not self.training
        self.batches.append(batch)
        match_B = torch.tensor(batch.text == batch.image, dtype=torch.float32) + 0.01 * torch.tensor(batch.image)
        return torch.stack([-match_B, match_B], dim=1) * self.certainty + self.weight

    def pooled(self, batch):
        assert not torch.is_grad_enabled()
        return torch.tensor(np.stack([batch.text, batch.image], axis=1), dtype=torch.float32)


class Words:
    """A title is as long as it has words."""

    def __init__(self, store) -> None:
        self.store = store

    def lengths(self, rows):
        return np.array([len(self.store.titles[row].split()) for row in rows])


@pytest.fixture(autouse=True)
def collated(monkeypatch):
    monkeypatch.setattr(
        scorer, "collate_pairs", lambda _, titles, text, image: Batch(text, image, titles.lengths(text))
    )


@pytest.mark.parametrize("batch_size", [1, 3, 64, 1000])
@pytest.mark.parametrize("protocol", ["fashionbert", "full"])
def test_a_model_that_knows_gets_exactly_one_at_any_batch_size(make_products, batch_size, protocol):
    store = make_products({("a", "b"): 20, ("a", "c"): 9})
    pairs = PairScorer(KnowsAll(), store, Words(store), batch_size=batch_size)
    result = evaluate(store, store.rows(None), pairs.score, protocol=protocol, candidates=12)
    assert result["image_to_text"] == result["text_to_image"] == {"R@1": 1.0, "R@5": 1.0, "R@10": 1.0}


def test_scores_come_back_in_the_order_asked_and_do_not_depend_on_the_batch(make_products):
    store = make_products({("a", "b"): 15})
    for row in range(15):
        store.titles[row] = " ".join(["word"] * (row % 4 + 1)) + f" {row}"  # lengths that force a reordering
    text, image = (side.ravel() for side in np.meshgrid(np.arange(15), np.arange(15)))
    shuffle = np.random.default_rng(0).permutation(225)
    whole = PairScorer(KnowsAll(), store, Words(store), batch_size=225).score(text, image)
    for batch_size in (1, 7, 64):
        scores = PairScorer(KnowsAll(), store, Words(store), batch_size=batch_size).score(text[shuffle], image[shuffle])
        np.testing.assert_array_equal(scores, whole[shuffle])
    assert (whole[text == image] > 0.8).all() and whole.max() <= 1


def test_titles_of_one_length_and_pairs_of_one_image_are_batched_together(make_products):
    store = make_products({("a", "b"): 8})
    for row in range(8):
        store.titles[row] = " ".join(["word"] * (1 + row % 2)) + f" {row}"
    model = KnowsAll()
    text, image = (side.ravel() for side in np.meshgrid(np.arange(8), np.arange(8)))
    PairScorer(model, store, Words(store), batch_size=4).score(text, image)
    for batch in model.batches:
        assert len(set((batch.text % 2).tolist())) == 1
        assert len(set(batch.image.tolist())) == 1


def test_a_pair_asked_twice_and_a_twin_title_are_scored_once(make_products):
    store = make_products({("a", "b"): 4})
    store.titles[3] = store.titles[1]
    model = KnowsAll()
    scores = PairScorer(model, store, Words(store), batch_size=2).score(np.array([1, 3, 1, 0]), np.array([2, 2, 2, 2]))
    assert sum(len(batch.text) for batch in model.batches) == 2
    assert scores[0] == scores[1] == scores[2]


def test_equal_photos_of_different_rows_tie_exactly(make_products):
    """KnowsAll's scores differ with the row of the image, as the last bits of one photo's features may."""
    store = make_products({("a", "b"): 5})
    store.image_hashes[:] = ["1f", "", "2e", "1f", ""]
    pairs = PairScorer(KnowsAll(), store, Words(store))
    scores = pairs.score(np.full(5, 2), np.arange(5))
    assert scores[0] == scores[3] and len(set(scores.tolist())) == 4
    assert pairs.vectors(np.arange(5))[:, 1].tolist() == [0, 1, 2, 0, 4]


def test_confident_scores_still_rank(make_products):
    """At logits 20 apart float32 probabilities are all 1.0 and would tie."""
    store = make_products({("a", "b"): 10})
    pairs = PairScorer(KnowsAll(certainty=12), store, Words(store))
    assert len(set(pairs.score(np.arange(10), np.arange(10)).tolist())) == 10


def test_vectors_come_back_in_the_order_asked(make_products):
    store = make_products({("a", "b"): 9})
    for row in range(9):
        store.titles[row] = " ".join(["word"] * (9 - row)) + f" {row}"
    rows = np.array([5, 0, 8, 3])
    found = PairScorer(KnowsAll(), store, Words(store), batch_size=2).vectors(rows)
    np.testing.assert_array_equal(found, np.stack([rows, rows], axis=1))
