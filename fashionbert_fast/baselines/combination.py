"""The weighted sum of two systems' scores.

    (1 - w) a / scale_a + w b / scale_b

scale: the standard deviation of a system's scores of the candidates of validation lists; w: what ranks these best.
Late fusion by a linear combination of scores (Fox and Shaw, Combination of Multiple Searches, 1994).

Shapes: n rows asked for, K pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fashionbert_fast.baselines.fitting import Validation
from fashionbert_fast.baselines.inputs import State
from fashionbert_fast.baselines.system import Baseline, Scorer, write_config
from fashionbert_fast.evaluation.ranking.calibration import choose_weight, scale_of

FOLDERS = ("a", "b")  # of the parts, each a directory of its own


class Sum(Baseline):
    """Of two systems that were fitted on one store."""

    name = "sum"

    def __init__(self, *, weight: float = 0.5, scales: Sequence[float] = (1.0, 1.0)) -> None:
        super().__init__(weight=weight, scales=list(scales))
        self.parts: tuple[Baseline, ...] = ()
        self._first: dict[str, int] = {}  # tensors of the first part's states

    @classmethod
    def of(cls, parts: tuple[Baseline, Baseline], validation: Validation) -> Sum:
        """With scales and the weight that validation lists tell."""
        first, second = (Scorer(part, validation.store).score for part in parts)
        found_2 = [validation.scores(score) for score in (first, second)]
        scales = [scale_of(scores) for scores in found_2]

        def quality(weight: float) -> float:
            return validation.recall(lambda t, i: summed(first(t, i), second(t, i), scales, weight))

        system = cls(weight=choose_weight(quality), scales=scales).join(parts)
        system.open(validation.store)
        system.fitted = {"validation_recall": quality(system.options["weight"]), "weight": system.options["weight"],
                         "parts": [part.fitted for part in parts]}  # fmt: skip
        return system

    def join(self, parts: Sequence[Baseline]) -> Sum:
        """Have these parts."""
        self.parts = tuple(parts)
        for name, part in zip(FOLDERS, parts, strict=True):
            self.add_module(name, part)
        return self

    @property
    def pairs_at_once(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return min(part.pairs_at_once for part in self.parts)

    def titles(self, rows: np.ndarray) -> State:
        return self._states([part.titles(rows) for part in self.parts], "titles")

    def photos(self, rows: np.ndarray) -> State:
        return self._states([part.photos(rows) for part in self.parts], "photos")

    def _states(self, states: list[State], of: str) -> State:
        self._first[of] = len(states[0])
        return states[0] + states[1]

    def meet(self, titles: State, photos: State) -> torch.Tensor:
        t, p = self._first["titles"], self._first["photos"]
        first_K = self.parts[0].meet(titles[:t], photos[:p])
        second_K = self.parts[1].meet(titles[t:], photos[p:])
        return summed(first_K.double(), second_K.double(), self.options["scales"], self.options["weight"])

    def write(self, folder: Path) -> None:
        write_config(self, folder)
        for name, part in zip(FOLDERS, self.parts, strict=True):
            (folder / name).mkdir()
            part.write(folder / name)

    def read(self, folder: Path) -> None:
        """Nothing: its parts are read by `systems.load`, and joined."""


def summed(first, second, scales: Sequence[float], weight: float):
    """(1 - weight) first / scales[0] + weight second / scales[1], of arrays or tensors."""
    return (1 - weight) / scales[0] * first + weight / scales[1] * second
