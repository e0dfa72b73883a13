"""What every system is: titles and photos to states once each, pairs of states to scores; and its directory on disk.

    RUN/config.json         model_type, name of the system, its options, how it was fitted
    RUN/model.safetensors   every number of it, a frozen BERT's too
    RUN/tokenizer files, RUN/patch_features.json     where it has a BERT; of the store it was fitted on

Shapes: N rows of a store, n rows asked for, K pairs, U distinct ones.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from fashionbert_fast.baselines import MODEL_TYPE
from fashionbert_fast.baselines.inputs import Held, State, TitleEncoder
from fashionbert_fast.data.tokenizer import load_tokenizer
from fashionbert_fast.errors import InputError
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.files import read_json, write_json, written_whole
from fashionbert_fast.inference.canonical import Canonical
from fashionbert_fast.inference.scorer import Work
from fashionbert_fast.model.tensors import WEIGHTS, load_safetensors


class Baseline(nn.Module):
    """A system. It is a function of its options (JSON) and its weights; `open` gives it a store to read.

    name: what the command calls it. pairs_at_once: how many pairs `meet` is given together, at most.
    """

    name: ClassVar[str]
    pairs_at_once = 1 << 16

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options
        self.fitted: dict[str, Any] = {}  # how: seed, epoch, seconds, validation figure

    def titles(self, rows: np.ndarray) -> State:
        """States of the titles of store rows, int64 (n,)."""
        raise NotImplementedError

    def photos(self, rows: np.ndarray) -> State:
        """States of the photos of store rows, int64 (n,)."""
        raise NotImplementedError

    def meet(self, titles: State, photos: State) -> torch.Tensor:
        """float64 (K,): how well title k and photo k go together, of states of K of each. Higher is better."""
        raise NotImplementedError

    def settle(self) -> None:
        """What an epoch leaves to be done before it is measured."""

    def open(self, store: FeatureStore) -> Self:
        """Read ``store`` from now on."""
        self.store = store
        for module in self.children():
            if hasattr(module, "open"):
                module.open(store)  # pyright: ignore[reportCallIssue]  # of this package
        return self

    @property
    def text(self) -> TitleEncoder | None:
        """The BERT it reads titles with, if any."""
        return next((module for module in self.modules() if isinstance(module, TitleEncoder)), None)

    # Directories -----------------------------------------------------------------------------------------------------
    def write(self, folder: Path) -> None:
        """Its files into a folder that is written whole."""
        write_config(self, folder)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / WEIGHTS)
        if self.text is not None:
            self.text.tokenizer.save_pretrained(folder)

    def read(self, folder: Path) -> None:
        """What `write` wrote of its weights and tokenizer. InputError where they do not fit."""
        try:
            self.load_state_dict(load_safetensors(folder), assign=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{folder / 'model.safetensors'}: does not fit config.json ({reason}); fit the baseline "
                             "again") from error  # fmt: skip
        if self.text is not None:
            self.text.tokenizer = load_tokenizer(folder)


class Scorer:
    """Scores pairs of a store's rows by a system, each title and photo encoded once.

    Equal titles are one text and equal photos one image: they tie exactly (`Canonical`).
    """

    scores: tuple[str, ...] = ("similarity",)

    def __init__(self, system: Baseline, store: FeatureStore) -> None:
        self.system, self.store, self.canonical, self.work = system.eval(), store, Canonical.of(store), Work()
        self._titles, self._photos = Held(system.titles, len(store)), Held(system.photos, len(store))

    @torch.inference_mode()
    def score(self, text_rows: np.ndarray, image_rows: np.ndarray, kind: str = "similarity") -> np.ndarray:
        """What the system says of each pair of store rows, float64 (K,); it has one kind of score. Every rank of a
        launcher computes all of it."""
        began = time.perf_counter()
        text_U, image_U, place_K = self.canonical.pairs(text_rows, image_rows)
        new_texts, new_images = self._titles.need(text_U), self._photos.need(image_U)
        step = self.system.pairs_at_once
        scores = [np.empty(0)]
        for start in range(0, len(text_U), step):
            span = slice(start, start + step)
            met_K = self.system.meet(self._titles.states(text_U[span]), self._photos.states(image_U[span]))
            scores.append(met_K.double().cpu().numpy())
        self.work.sequences += len(new_texts) + len(new_images)
        self.work.tokens += self.store.manifest.patches * len(new_images)
        if self.system.text is not None:
            self.work.tokens += int(self.system.text.titles.lengths(new_texts).sum())
        self.work.seconds += time.perf_counter() - began
        return np.concatenate(scores)[place_K]


def write_config(system: Baseline, folder: Path) -> None:
    """config.json of a system."""
    config = {"model_type": MODEL_TYPE, "name": system.name, "fitted": system.fitted, "options": system.options}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def save(system: Baseline, out: Path) -> None:
    """Write the directory whole. InputError where it cannot be written."""
    try:
        with written_whole(out) as folder:
            system.write(folder)
            write_json(folder / "patch_features.json", system.store.manifest.to_dict())
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a baseline's directory. InputError where it is none."""
    config = read_json(folder / "config.json", "give what `fashionbert baseline` wrote")
    known = {"name": str, "options": dict, "fitted": dict}
    if config.get("model_type") != MODEL_TYPE:
        raise InputError(f"{folder}: model_type is not {MODEL_TYPE}; give what `fashionbert baseline` wrote")
    for field, kind in known.items():
        if not isinstance(config.get(field), kind):
            raise InputError(f"{folder / 'config.json'}: {field} is {config.get(field)!r:.50}; fit the baseline again")
    return config
