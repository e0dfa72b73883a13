from __future__ import annotations

import numpy as np
import pytest

from fashionbert_fast.evaluation import evaluate
from fashionbert_fast.evaluation.recognition.linear_probe import probe, recognition


def separable(labels, seed):
    """Vectors [n, 8] that sit close to a corner of their own for each label."""
    names = sorted(set(labels))
    rng = np.random.default_rng(seed)
    return np.stack([np.eye(8)[names.index(label)] for label in labels]) + 0.05 * rng.standard_normal((len(labels), 8))


def test_separable_vectors_are_recognised():
    labels = ["a", "b", "c"] * 20
    found = probe(separable(labels, 0), labels, separable(labels, 1), labels)
    assert found["accuracy"] == found["macro_f1"] == 1.0
    assert found["majority"] == pytest.approx(1 / 3)
    assert (found["classes"], found["rows"], found["absent_from_train"]) == (3, 60, [])
    assert found["converged"]


def test_class_absent_from_training_counts_as_wrong_and_is_named():
    train = ["a", "b"] * 20
    test = ["a", "b", "new", "new"]
    vectors = separable([*train, *test], 0)
    found = probe(vectors[:40], train, vectors[40:], test)
    assert found["accuracy"] == 0.5
    assert found["absent_from_train"] == ["new"]
    assert found["rows_absent_from_train"] == 2
    assert found["macro_f1"] < 2 / 3  # the new class weighs in with 0, and its rows spoil the others' precision


def test_unknown_labels_are_left_out_and_one_class_needs_no_fit():
    found = probe(np.zeros((3, 2)), ["a", "a", ""], np.zeros((4, 2)), ["a", "b", "", ""])
    assert (found["accuracy"], found["rows"], found["classes"]) == (0.5, 2, 1)
    assert "skipped" in probe(np.zeros((2, 2)), ["", ""], np.zeros((1, 2)), ["a"])


def test_recognition_fits_on_train_only_and_joins_protocol_full(make_products, perfect):
    store = make_products({("shoes", "boots"): 30, ("shoes", "other"): 30, ("bags", "other"): 30})
    store.splits[:] = ["validation" if i % 3 == 0 else "train" for i in range(90)]
    asked = []

    def vectors(rows):
        asked.append(rows.tolist())
        return separable([store.categories[r] + store.subcategories[r] for r in rows], len(rows))

    result = evaluate(store, store.rows("validation"), perfect, protocol="full", vectors=vectors)
    assert asked == [store.rows("train").tolist(), store.rows("validation").tolist()]
    found = result["recognition"]
    assert (found["train_rows"], found["rows"]) == (60, 30)
    assert found["category"]["accuracy"] == found["subcategory"]["accuracy"] == 1.0
    assert (found["category"]["classes"], found["subcategory"]["classes"]) == (2, 3)  # "other" is two classes
    assert "recognition" not in evaluate(store, store.rows("validation"), perfect, vectors=vectors)


def test_recognition_is_not_measured_on_its_own_training_rows(make_products):
    store = make_products({("a", "b"): 4}, split="train")
    assert "training rows" in recognition(store, store.rows(None), lambda rows: np.zeros((len(rows), 2)))["skipped"]
    store.splits[:] = ["validation"] * 4
    assert "no training split" in recognition(store, store.rows(None), lambda rows: np.zeros((len(rows), 2)))["skipped"]
