"""Category and sub-category recognition: what a linear probe reads off the [CLS] vectors.

Shapes: T training rows, E evaluated rows, H hidden size.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

PROBE_ITERATIONS = 1000


def recognition(store: Any, rows_E: np.ndarray, vectors: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
    """Fit a probe on the store's training split and measure it on the other ``rows_E``, for both levels.

    vectors(rows [n]) -> [CLS] vectors [n, H] of those products (own title with own image). Rows that belong to the
    training split are left out of the measurement, rows without a label out of both.
    Returns {"train_rows", "rows", "category": {...}, "subcategory": {...}} with the figures of ``probe``, or only
    {"skipped": why} where there is nothing to fit or to measure.
    """
    training_T = np.array([row for row, split in enumerate(store.splits) if split == "train"], dtype=np.int64)
    measured_E = np.setdiff1d(rows_E, training_T)
    if len(training_T) == 0:
        return {"skipped": "the store has no training split to fit the probe on"}
    if len(measured_E) == 0:
        return {"skipped": "the evaluated rows are the probe's own training rows"}
    train_TH, test_EH = vectors(training_T), vectors(measured_E)
    # a sub-category is named with its category, as in the protocols: "Other" of shoes is not "Other" of bags
    subcategories = [f"{c} / {s}" if s else "" for c, s in zip(store.categories, store.subcategories, strict=True)]
    result: dict[str, Any] = {"train_rows": len(training_T), "rows": len(measured_E)}
    for level, labels in (("category", store.categories), ("subcategory", subcategories)):
        train_labels = [labels[row] for row in training_T]
        result[level] = probe(train_TH, train_labels, test_EH, [labels[row] for row in measured_E])
    return result


def probe(
    train_TH: np.ndarray, train_labels_T: Sequence[str], test_EH: np.ndarray, test_labels_E: Sequence[str]
) -> dict[str, Any]:
    """Accuracy and macro-F1 of a logistic regression on standardised vectors.

    Empty labels are unknown and left out. A class that training never showed cannot be predicted: its rows count as
    wrong, it weighs in the macro-F1 with 0, and it is listed under "absent_from_train". "majority" is the
    accuracy of always naming the commonest training class: the figure to beat. Macro-F1 is the mean over the classes
    that occur in the evaluated rows or were predicted. Returns {"skipped": why} when no label is left.
    """
    from sklearn.metrics import f1_score  # here: scikit-learn takes a second to import, and only this needs it

    train_known, test_known = np.array([bool(x) for x in train_labels_T]), np.array([bool(x) for x in test_labels_E])
    if not train_known.any() or not test_known.any():
        return {"skipped": "no labels to train the probe on, or none to measure it on"}
    train_T = np.array(train_labels_T)[train_known]
    test_E = np.array(test_labels_E)[test_known]
    classes, counts = np.unique(train_T, return_counts=True)
    predicted_E, converged = _fit_predict(train_TH[train_known], train_T, test_EH[test_known])
    absent = sorted(set(test_E.tolist()) - set(classes.tolist()))
    return {
        "accuracy": float((predicted_E == test_E).mean()),
        "macro_f1": float(f1_score(test_E, predicted_E, average="macro", zero_division=0)),  # pyright: ignore[reportArgumentType]  # 0 is allowed
        "majority": float((test_E == classes[counts.argmax()]).mean()),
        "rows": len(test_E),
        "classes": len(classes),
        "absent_from_train": absent,
        "rows_absent_from_train": int(np.isin(test_E, absent).sum()),
        "converged": converged,
    }


def _fit_predict(train_TH: np.ndarray, train_T: np.ndarray, test_EH: np.ndarray) -> tuple[np.ndarray, bool]:
    """Predicted labels [E] and whether the solver converged. One class only: there is nothing to fit."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(set(train_T.tolist())) == 1:
        return np.full(len(test_EH), train_T[0]), True
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=PROBE_ITERATIONS))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        pipeline.fit(train_TH, train_T)
    converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    return pipeline.predict(test_EH), converged
