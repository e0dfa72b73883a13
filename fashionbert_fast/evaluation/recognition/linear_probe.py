"""Category and sub-category recognition: what a linear probe reads off the [CLS] vectors, or fine-tuning makes of them.

Shapes: T training rows, E evaluated rows, H hidden size, K classes, R resamples.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fashionbert_fast.evaluation.ranking.intervals import Statistic, figures, interval, mean_intervals

PROBE_ITERATIONS = 1000
METHODS = ("none", "probe", "finetune", "both")
# (training rows [T], level -> labels of all rows, measured rows [E]) -> level -> labels [E], and what was done
Tune = Callable[[np.ndarray, Mapping[str, list[str]], np.ndarray], tuple[dict[str, np.ndarray], dict[str, Any]]]


def recognition_rows(store: Any, rows_E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows to train on, the store's training split, and those of ``rows_E`` to measure on: the others."""
    training_T = np.array([row for row, split in enumerate(store.splits) if split == "train"], dtype=np.int64)
    return training_T, np.setdiff1d(rows_E, training_T)


def labels_of(store: Any) -> dict[str, list[str]]:
    """Level -> the label of each row, "" where it is not known. A sub-category is named with its category, as in the
    protocols: "Other" of shoes is not "Other" of bags."""
    pairs = zip(store.categories, store.subcategories, strict=True)
    return {"category": store.categories, "subcategory": [f"{c} / {s}" if s else "" for c, s in pairs]}


def recognition(store: Any, rows_E: np.ndarray, vectors: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
    """Fit a probe on the store's training split and measure it on the other ``rows_E``, for both levels.

    vectors(rows [n]) -> [CLS] vectors [n, H] of those products (own title with own image). Rows that belong to the
    training split are left out of the measurement, rows without a label out of both.
    Returns {"train_rows", "rows", "category": {...}, "subcategory": {...}} with the figures of ``probe``, or only
    {"skipped": why} where there is nothing to fit or to measure.
    """
    training_T, measured_E = recognition_rows(store, rows_E)
    if why := _nothing_to_do(training_T, measured_E):
        return {"skipped": why}
    train_TH, test_EH = vectors(training_T), vectors(measured_E)
    result: dict[str, Any] = {"train_rows": len(training_T), "rows": len(measured_E)}
    for level, labels in labels_of(store).items():
        train_labels = [labels[row] for row in training_T]
        result[level] = probe(train_TH, train_labels, test_EH, [labels[row] for row in measured_E])
    return result


def finetuned_recognition(store: Any, rows_E: np.ndarray, tune: Tune) -> dict[str, Any]:
    """As ``recognition``, by what ``tune`` makes of the training split; what it says of itself under "finetuning"."""
    training_T, measured_E = recognition_rows(store, rows_E)
    if why := _nothing_to_do(training_T, measured_E):
        return {"skipped": why}
    levels = labels_of(store)
    predicted, done = tune(training_T, levels, measured_E)
    result: dict[str, Any] = {"train_rows": len(training_T), "rows": len(measured_E), "finetuning": done}
    for level, labels in levels.items():
        train_labels, test_labels = ([labels[row] for row in rows] for rows in (training_T, measured_E))
        if _unlabelled(train_labels, test_labels) or level not in predicted:
            result[level] = {"skipped": "no labels to fine-tune on, or none to measure it on"}
        else:
            known_E = np.array([bool(label) for label in test_labels])
            result[level] = measure(
                [label for label in train_labels if label], np.array(test_labels)[known_E], predicted[level][known_E]
            )
    return result


def _nothing_to_do(training_T: np.ndarray, measured_E: np.ndarray) -> str | None:
    if len(training_T) == 0:
        return "the store has no training split to learn from"
    if len(measured_E) == 0:
        return "the evaluated rows are the training rows themselves"
    return None


def _unlabelled(train_labels_T: Sequence[str], test_labels_E: Sequence[str]) -> bool:
    return not any(train_labels_T) or not any(test_labels_E)


def probe(
    train_TH: np.ndarray, train_labels_T: Sequence[str], test_EH: np.ndarray, test_labels_E: Sequence[str]
) -> dict[str, Any]:
    """The figures of `measure` for a logistic regression on standardised vectors, and whether its solver "converged".

    Empty labels are unknown and left out. Returns {"skipped": why} when no label is left.
    """
    if _unlabelled(train_labels_T, test_labels_E):
        return {"skipped": "no labels to train the probe on, or none to measure it on"}
    train_known, test_known = np.array([bool(x) for x in train_labels_T]), np.array([bool(x) for x in test_labels_E])
    train_T, test_E = np.array(train_labels_T)[train_known], np.array(test_labels_E)[test_known]
    predicted_E, converged = _fit_predict(train_TH[train_known], train_T, test_EH[test_known])
    return measure(train_T, test_E, predicted_E) | {"converged": converged}


def measure(train_T: Sequence[str] | np.ndarray, test_E: np.ndarray, predicted_E: np.ndarray) -> dict[str, Any]:
    """Accuracy and macro-F1 of predicted labels, each with a 95% interval over the evaluated rows.

    A class that training never showed cannot be predicted: its rows count as wrong, it weighs in the macro-F1 with 0,
    and it is listed under "absent_from_train". "majority" is the accuracy of always naming the commonest training
    class: the figure to beat. Macro-F1 is the mean over the classes that occur in the evaluated rows or were predicted.
    """
    classes, counts = np.unique(train_T, return_counts=True)
    right_E, E = predicted_E == test_E, len(test_E)
    absent = sorted(set(test_E.tolist()) - set(classes.tolist()))
    macro = macro_f1(test_E, predicted_E)
    return {
        "accuracy": float(right_E.mean()),
        "macro_f1": float(figures(macro, E)[0]),
        "majority": float((test_E == classes[counts.argmax()]).mean()),
        "intervals": {
            "accuracy": mean_intervals(right_E[:, None].astype(float), seed=0)[0].tolist(),
            "macro_f1": interval(macro, E, seed=0)[0].tolist(),
        },
        "rows": E,
        "classes": len(classes),
        "absent_from_train": absent,
        "rows_absent_from_train": int(np.isin(test_E, absent).sum()),
    }


def macro_f1(test_E: np.ndarray, predicted_E: np.ndarray) -> Statistic:
    """The mean over the K classes that occur on either side of 2 hits / (rows of the class + rows so named)."""
    classes, number = np.unique(np.concatenate([test_E, predicted_E]), return_inverse=True)
    true_E, named_E = number[: len(test_E)], number[len(test_E) :]
    true_EK, named_EK = (np.eye(len(classes))[of] for of in (true_E, named_E))

    def of(weights_RE: np.ndarray) -> np.ndarray:
        hits_RK, both_RK = weights_RE @ (true_EK * named_EK), weights_RE @ (true_EK + named_EK)
        f1_RK = np.divide(2 * hits_RK, both_RK, out=np.zeros_like(hits_RK), where=both_RK > 0)
        return f1_RK.sum(axis=1, keepdims=True) / (both_RK > 0).sum(axis=1, keepdims=True)

    return of


def _fit_predict(train_TH: np.ndarray, train_T: np.ndarray, test_EH: np.ndarray) -> tuple[np.ndarray, bool]:
    """Predicted labels [E] and whether the solver converged. One class only: there is nothing to fit."""
    if len(set(train_T.tolist())) == 1:
        return np.full(len(test_EH), train_T[0]), True
    from sklearn.exceptions import ConvergenceWarning  # here: scikit-learn takes a second to import
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=PROBE_ITERATIONS))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        pipeline.fit(train_TH, train_T)
    converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    return pipeline.predict(test_EH), converged
