"""What is learnt of scores on validation pairs: a threshold for those that have none, and how two are added up.

Functions of arrays alone, for scores of any model.

Shapes: A pairs that belong together, B pairs that do not, V distinct scores; ... any.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

WEIGHTS = tuple(i / 20 for i in range(21))  # of similarity in the sum; 0: the match alone, 1: the similarity alone


@dataclass(frozen=True)
class Calibration:
    """What was learnt of one score.

    threshold: a pair whose score lies above it is said to belong together. For the sum alone: match_scale and
    similarity_scale, what the logit of the match and the similarity are divided by, and the weight of the latter.
    """

    threshold: float
    match_scale: float | None = None
    similarity_scale: float | None = None
    weight: float | None = None


def learn_threshold(own: np.ndarray, other: np.ndarray) -> float:
    """The threshold t of the best accuracy, where "above t" says that a pair belongs together.

    own: scores of pairs that do (A,), other: of pairs that do not (B,); each side counts for one half, whatever their
    numbers. Accuracy is the same for all t between two neighbouring scores: t is the middle, of the widest such gap
    where several are as good (the margin is largest there), of the lowest of those. Scores that no threshold makes
    better than a guess get their largest as threshold: nothing lies above it.

    Compare by ``score > t``, not by a probability: a sigmoid rounds to ties what the scores still tell apart.

    Raises ValueError where a side is empty or a score NaN.
    """
    own, other = np.sort(np.asarray(own, np.float64)), np.sort(np.asarray(other, np.float64))
    if not len(own) or not len(other) or np.isnan(own[-1]) or np.isnan(other[-1]):
        raise ValueError(f"{len(own)} own and {len(other)} other scores: both are needed, and none may be NaN")
    value_V = np.unique(np.concatenate([own, other]))
    # of a threshold from this value up to the next; in whole numbers, so that equal accuracies are equal
    own_V = len(own) - np.searchsorted(own, value_V, side="right")
    other_V = np.searchsorted(other, value_V, side="right")
    right_V = own_V * len(other) + other_V * len(own)
    best_V = np.flatnonzero(right_V[:-1] == right_V.max())
    if len(best_V) == 0 or right_V.max() == len(own) * len(other):
        return float(value_V[-1])
    low = best_V[np.diff(value_V)[best_V].argmax()]
    middle = float(value_V[low] + (value_V[low + 1] - value_V[low]) / 2)
    return middle if middle < value_V[low + 1] else float(value_V[low])  # of two neighbouring floats there is none


def logit(probability: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)), float64 (...). Of 0 and 1 that of the nearest numbers that are neither: it is finite."""
    p = np.clip(np.asarray(probability, np.float64), np.finfo(np.float64).tiny, 1 - 2.0**-53)
    return np.log(p) - np.log1p(-p)


def scale_of(scores: np.ndarray) -> float:
    """The standard deviation of scores; 1 where they are all the same, which then keep what they have."""
    return float(np.std(scores, dtype=np.float64)) or 1.0


def summed(
    logits: np.ndarray, similarity: np.ndarray, match_scale: float, similarity_scale: float, weight: float
) -> np.ndarray:
    """(1 - weight) logits / match_scale + weight similarity / similarity_scale, float64 (...). logits: of the match."""
    return (1 - weight) / match_scale * logits + weight / similarity_scale * np.asarray(similarity, np.float64)


def choose_weight(quality: Callable[[float], float]) -> float:
    """The one of `WEIGHTS` of the largest quality; of those as good the nearest to one half, of two as near the
    smaller. One half is both scores alike: nothing moves the weight from there but a better quality."""
    found = {weight: quality(weight) for weight in WEIGHTS}
    most = max(found.values())
    return min((weight for weight in WEIGHTS if found[weight] == most), key=lambda weight: (abs(weight - 0.5), weight))
