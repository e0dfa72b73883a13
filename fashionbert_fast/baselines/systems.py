"""The systems by name: fitted on a store, written, read again."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from fashionbert_fast.baselines import DEFAULT_CORE, SYSTEMS
from fashionbert_fast.baselines.combination import FOLDERS, Sum
from fashionbert_fast.baselines.fitting import Budget, Validation
from fashionbert_fast.baselines.system import Baseline, Scorer, read_config
from fashionbert_fast.errors import InputError
from fashionbert_fast.features.store import FeatureStore, require_same_features
from fashionbert_fast.files import read_json


def system_class(name: str) -> Any:
    """InputError where there is no such system."""
    if name not in SYSTEMS:
        raise InputError(f"{name:.50}: no such system; choose one of {', '.join(SYSTEMS)}, or a sum of two, A+B")
    module, _, of = SYSTEMS[name][0].partition(".")
    return getattr(importlib.import_module(f"fashionbert_fast.baselines.{module}"), of)


def summands(name: str) -> tuple[str, str] | None:
    """ "infonce+cca" -> ("infonce", "cca"); None where the name is of no sum."""
    cuts = [i for i, letter in enumerate(name) if letter == "+"]
    pairs = [(name[:i], name[i + 1 :]) for i in cuts]
    return next((pair for pair in pairs if pair[0] in SYSTEMS and pair[1] in SYSTEMS), None)


def fit(
    name: str, store: FeatureStore, *, seed: int = 0, budget: Budget | None = None, core: str | Path = DEFAULT_CORE,
    parts: Sequence[Path] | None = None,
) -> Baseline:  # fmt: skip
    """Fit a system on the training split, its epoch chosen on the validation split.

    parts: directories of the two systems of a sum; None: they are fitted, each by the whole budget. InputError where
    there is no such system, the store lacks a split, or the parts are not what the name says.
    """
    pair = summands(name)
    if pair is None:
        system_class(name)
    if parts is not None and pair is None:
        raise InputError(f"--parts: {name} is no sum A+B; leave it out")
    rows, held_out = store.rows("train"), store.rows("validation")
    for split, found in (("train", rows), ("validation", held_out)):
        if len(found) < 2:
            raise InputError(f"{store.path}: split {split!r} has {len(found)} products, fitting a baseline needs 2; "
                             "prepare the catalogue with --holdout 0.1")  # fmt: skip
    validation, budget = Validation(store, held_out, seed), budget or Budget()

    def fitted(of: str) -> Baseline:
        started = replace(budget, started=perf_counter())
        system = system_class(of).fit(store, rows, validation, seed=seed, budget=started, core=core)
        system.fitted |= {"seed": seed, "products": len(rows), "store": store.manifest.content_sha256}
        return system.eval()

    if pair is None:
        return fitted(name)
    if parts is None:
        both = fitted(pair[0]), fitted(pair[1])
    else:
        both = load(parts[0], store), load(parts[1], store)
        for part, wanted, path in zip(both, pair, parts, strict=True):
            if part.name != wanted:
                raise InputError(f"--parts: {path} holds {part.name}, where {name} has {wanted}; give another")
    return Sum.of(both, validation)


def load(folder: Path, store: FeatureStore) -> Baseline:
    """What `system.save` wrote, opened on ``store``. InputError where it is none, is damaged, or was fitted on other
    patch features than the store holds."""
    require_same_features(read_json(folder / "patch_features.json"), store.manifest, f"{folder} and {store.path}")
    return _read(folder).open(store).eval()


def _read(folder: Path) -> Baseline:
    config = read_config(folder)
    try:
        with torch.device("meta"):  # no memory, whatever sizes the file names: its tensors have to fit them
            of = Sum if config["name"] == Sum.name else system_class(config["name"])
            system = of(**config["options"])
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"{folder / 'config.json'}: {error!s:.200}; fit the baseline again") from error
    system.read(folder)
    system.fitted = config["fitted"]
    return system.join([_read(folder / name) for name in FOLDERS]) if isinstance(system, Sum) else system


def load_scorer(
    folder: Path, store: FeatureStore, data: Path, batch_size: int | None = None, device: str | None = None,
    precision: str = "fp32", keep: Path | None = None,
) -> tuple[Scorer, Path]:  # fmt: skip
    """As `evaluation.run.load_scorer`, of a baseline's directory: on the CPU, in float32, nothing kept of an
    evaluation that is interrupted."""
    if precision != "fp32":
        raise InputError(f"--precision {precision}: baselines are scored in fp32; leave it out")
    if device not in (None, "cpu"):
        raise InputError(f"--device {device}: baselines are scored on a CPU; leave it out")
    return Scorer(load(folder, store), store), folder
