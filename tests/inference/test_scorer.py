"""The batching of PairScorer, with a model and a collation that only remember what they were given."""

from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fashionbert_fast.evaluation import evaluate
from fashionbert_fast.inference import embeddings, scorer
from fashionbert_fast.inference.canonical import Canonical
from fashionbert_fast.inference.scorer import PairScorer


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


class Vectors(torch.nn.Module):
    """Vectors of three numbers, which is not the width of its hidden states."""

    vector_size = 3

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(hidden_size=2)
        self.seen: list[tuple[str, int]] = []

    def vectors(self, batch):
        self.seen += [(batch.kind, row) for row in batch.rows.tolist()]
        angle_S = torch.from_numpy(batch.rows) * 0.7 + (batch.kind == "image")
        return torch.stack([angle_S.sin(), angle_S.cos() * 0.6, angle_S.cos() * 0.8], dim=1).float()


class Alone(Batch):
    def __init__(self, kind, rows):
        super().__init__(None, None, np.ones(len(rows)))
        self.kind, self.rows = kind, rows


@pytest.fixture
def alone(monkeypatch):
    monkeypatch.setattr(scorer, "collate_texts", lambda titles, rows, *_: Alone("text", rows))
    monkeypatch.setattr(scorer, "collate_images", lambda store, rows: Alone("image", rows))


def embedding(make_products, count=12, batch_size=5):
    store = make_products({("a", "b"): count})
    store.manifest = SimpleNamespace(patches=4, feature_size=6)
    return PairScorer(Vectors(), store, Words(store), batch_size=batch_size)


def test_similarity_is_the_naive_product_in_float64(alone, make_products):
    pairs = embedding(make_products)
    text, image = (side.ravel() for side in np.meshgrid(np.arange(12), np.arange(12)))
    found = pairs.score(text, image, kind="similarity")
    one = {kind: pairs.model.vectors(Alone(kind, np.arange(12))).numpy() for kind in ("text", "image")}
    for score, t, i in zip(found.tolist(), text, image, strict=True):
        products = [float(a) * float(b) for a, b in zip(one["text"][t], one["image"][i], strict=True)]
        assert score == pytest.approx(math.fsum(products), abs=1e-15)
    assert found.dtype == np.float64 and len(set(found.tolist())) == 144


def test_each_title_and_photo_is_embedded_once_however_often_it_is_asked_for(alone, make_products):
    pairs = embedding(make_products)
    store = pairs.store
    store.titles[7], store.image_hashes[2], store.image_hashes[9] = store.titles[3], "1f", "1f"
    pairs = PairScorer(pairs.model, store, pairs.titles, batch_size=5)
    text, image = (side.ravel() for side in np.meshgrid(np.arange(12), np.arange(12)))
    first = pairs.score(text[:60], image[:60], kind="similarity")  # 5 photos with all titles
    again = pairs.score(text, image, kind="similarity")
    np.testing.assert_array_equal(again[:60], first)
    seen = Counter(pairs.model.seen)
    assert max(seen.values()) == 1 and Counter(kind for kind, _ in seen) == {"text": 11, "image": 11}
    by_pair = again.reshape(12, 12)  # of image i, text t
    assert (by_pair[:, 7] == by_pair[:, 3]).all() and (by_pair[2] == by_pair[9]).all()
    assert pairs.work.sequences == 22


def test_bits_of_a_similarity_do_not_depend_on_what_else_is_asked(monkeypatch):
    generator = np.random.default_rng(0)
    left_UH, right_VH = (generator.standard_normal((40, 384)).astype(np.float32) for _ in range(2))
    left_K, right_K = generator.integers(40, size=(2, 5000))
    whole = embeddings.cosines(left_UH, left_K, right_VH, right_K)
    np.testing.assert_allclose(whole, (left_UH.astype(np.float64) @ right_VH.T)[left_K, right_K], rtol=1e-10)
    order = generator.permutation(5000)[:777]
    np.testing.assert_array_equal(embeddings.cosines(left_UH, left_K[order], right_VH, right_K[order]), whole[order])
    monkeypatch.setattr(embeddings, "PAIRS_AT_ONCE", 13)
    np.testing.assert_array_equal(embeddings.cosines(left_UH, left_K, right_VH, right_K), whole)


def test_what_is_equal_is_one_row(make_products):
    store = make_products({("a", "b"): 5})
    store.titles[4], store.image_hashes = store.titles[1], ["1f", "", "2e", "1f", ""]
    canonical = Canonical.of(store)
    assert canonical.text_N.tolist() == [0, 1, 2, 3, 1] and canonical.image_N.tolist() == [0, 1, 2, 0, 4]
    text_U, image_U, place_K = canonical.pairs(np.array([4, 1, 2, 1]), np.array([3, 0, 2, 4]))
    assert (text_U.tolist(), image_U.tolist(), place_K.tolist()) == ([1, 1, 2], [0, 4, 2], [0, 0, 2, 1])
    row_U, place_n = canonical.images(np.array([3, 4, 0]))
    assert (row_U.tolist(), place_n.tolist()) == ([0, 4], [0, 1, 0])
    row_U, place_n = canonical.texts(np.array([4, 3]))
    assert row_U[place_n].tolist() == [1, 3]
