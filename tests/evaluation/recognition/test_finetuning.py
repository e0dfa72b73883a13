"""Recognition by fine-tuning: it learns, its epoch is chosen without the measured rows, the model stays as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import write_store
from sklearn.metrics import f1_score

from fashionbert_fast import FashionBertConfig, FashionBertForPreTraining
from fashionbert_fast.data.pairs import collate_pairs
from fashionbert_fast.data.titles import TokenizedTitles
from fashionbert_fast.data.tokenizer import load_tokenizer, train_wordpiece
from fashionbert_fast.errors import InputError
from fashionbert_fast.evaluation.ranking.intervals import figures
from fashionbert_fast.evaluation.recognition import finetuning
from fashionbert_fast.evaluation.recognition.finetuning import Finetuning, finetune
from fashionbert_fast.evaluation.recognition.linear_probe import (
    finetuned_recognition,
    labels_of,
    macro_f1,
    recognition_rows,
)
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.objectives.recognition import FashionBertForRecognition, recognition_loss


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A store of 240 products and its titles, tokenised."""
    folder = tmp_path_factory.mktemp("shelf")
    store = FeatureStore.open(write_store(folder / "store", 240))
    train_wordpiece(store.titles, 300, folder / "tokenizer")
    return store, TokenizedTitles(store.titles, load_tokenizer(folder / "tokenizer"), 16)


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = FashionBertConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=32, patches=4, patch_feature_size=24, initializer_range=0.1, hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
    )  # fmt: skip
    return FashionBertForPreTraining(config)


def tuned(model, shelf, **how):
    store, titles = shelf
    rows = store.rows("validation")

    def tune(train, names, measured):
        return finetune(model, store, titles, train, names, measured, Finetuning(**how))

    return finetuned_recognition(store, rows, tune)


def test_it_learns_and_the_model_is_what_it_was(model, shelf):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = tuned(model, shelf, epochs=5, lr=2e-3, batch_size=8)
    for level, classes in (("category", 2), ("subcategory", 6)):
        assert found[level]["accuracy"] > 0.9 > 0.6 > found[level]["majority"]
        assert found[level]["classes"] == classes
        low, high = found[level]["intervals"]["macro_f1"]
        assert low <= found[level]["macro_f1"] <= high
    assert (found["train_rows"], found["rows"]) == (210, 30)
    done = found["finetuning"]
    assert (done["trained_on"], done["chosen_by"], done["epochs"]) == (189, 21, 5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert tuned(model, shelf, epochs=5, lr=2e-3, batch_size=8) == found


def test_the_measured_rows_are_seen_once_and_the_best_epoch_is_kept(model, shelf, monkeypatch):
    store, _ = shelf
    measured = set(store.rows("validation").tolist())
    seen, scores, states = [], iter([0.2, 0.9, 0.5]), []
    collate = finetuning.collate_pairs

    def watched(store, titles, text, image):
        assert (text == image).all()
        seen.append(set(text.tolist()))
        return collate(store, titles, text, image)

    def accuracy(tuned, products, rows):
        assert not measured & set(rows.tolist())
        states.append(tuned.classifiers["category"].weight.detach().clone())
        return next(scores)

    predict = finetuning.predict

    def predicted(tuned, products, rows):
        assert torch.equal(tuned.classifiers["category"].weight, states[1])
        return predict(tuned, products, rows)

    monkeypatch.setattr(finetuning, "collate_pairs", watched)
    monkeypatch.setattr(finetuning, "_accuracy", accuracy)
    monkeypatch.setattr(finetuning, "predict", predicted)
    done = tuned(model, shelf, epochs=3, lr=1e-3, products=40)["finetuning"]
    assert (done["epoch_chosen"], done["accuracy_chosen_by"], done["trained_on"]) == (2, 0.9, 36)
    assert [bool(rows & measured) for rows in seen] == [False] * (len(seen) - 1) + [True]


def test_the_core_and_the_pooler_are_carried_over(model, shelf):
    store, titles = shelf
    rows = np.arange(5)
    own = FashionBertForRecognition.from_model(model, {"category": 2, "subcategory": 6}).eval()
    pairs = collate_pairs(store, titles, rows, rows)
    with torch.no_grad():
        logits = own.logits(pairs)
        expected = own.classifiers["subcategory"](model.eval().pooled(pairs))
        torch.testing.assert_close(logits["subcategory"], expected, atol=1e-5, rtol=0)
        for level, logits_BC in own(pairs).items():  # all rows through the last layer, or [CLS] alone
            torch.testing.assert_close(logits_BC, logits[level], atol=1e-5, rtol=0)


def test_unknown_labels_count_for_nothing():
    logits = {"category": torch.tensor([[2.0, 0.0], [5.0, 0.0], [0.0, 1.0]])}
    known = recognition_loss({"category": logits["category"][[0, 2]]}, {"category": torch.tensor([0, 1])})
    assert recognition_loss(logits, {"category": torch.tensor([0, -100, 1])}) == known
    assert recognition_loss(logits, {"category": torch.tensor([-100] * 3)}) == 0


def test_macro_f1_is_scikit_learns():
    rng = np.random.default_rng(0)
    for _ in range(20):
        test_E, predicted_E = rng.integers(0, 6, (2, 30)).astype(str)
        expected = f1_score(test_E, predicted_E, average="macro")
        assert figures(macro_f1(test_E, predicted_E), 30)[0] == pytest.approx(expected)


def test_a_level_without_labels_is_left_out(model, shelf, make_products):
    store, _ = shelf
    rows = store.rows("validation")
    predicted = {"category": np.array([store.categories[row] for row in rows], dtype=object)}
    found = finetuned_recognition(store, rows, lambda train, names, measured: (predicted, {}))
    assert found["category"]["accuracy"] == 1.0 and "skipped" in found["subcategory"]
    assert set(labels_of(store)["subcategory"]) >= {"Topwear / shirt", "Footwear / boot"}
    assert (
        "training split"
        in finetuned_recognition(make_products({("a", "b"): 4}), rows[:0], lambda *_: ({}, {}))["skipped"]
    )
    assert len(recognition_rows(store, rows)[0]) == 210


@pytest.mark.parametrize("change", [{"epochs": 0}, {"products": 3}, {"lr": 0.0}, {"lr": float("nan")}])
def test_nonsense_is_named(change):
    with pytest.raises(InputError, match=f"--finetune-{next(iter(change))}"):
        Finetuning(**change)
