"""From a checkpoint and a feature store on disk to the figures of a protocol."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fashionbert_fast import __version__
from fashionbert_fast.catalogue.twins import leaks
from fashionbert_fast.data.titles import TokenizedTitles
from fashionbert_fast.data.tokenizer import load_tokenizer
from fashionbert_fast.distributed import is_main, pick_device
from fashionbert_fast.errors import InputError
from fashionbert_fast.evaluation.ranking.candidates import CandidateLists
from fashionbert_fast.evaluation.ranking.choice import Ranked, asked_scores, rank
from fashionbert_fast.evaluation.ranking.protocols import (
    DEFAULT_CANDIDATES,
    Scored,
    candidate_lists,
    check_grouping,
    released_faulty,
    summarise,
)
from fashionbert_fast.evaluation.ranking.ranks import RELEASED_BATCH_SIZE
from fashionbert_fast.evaluation.recognition.finetuning import Finetuning, finetune
from fashionbert_fast.evaluation.recognition.linear_probe import finetuned_recognition, recognition, recognition_rows
from fashionbert_fast.evaluation.reports.candidate_files import Drawn, describe, read_lists
from fashionbert_fast.features.store import FeatureStore, require_same_features
from fashionbert_fast.files import SEAL
from fashionbert_fast.inference.scorer import DEFAULT_BATCH_SIZE, PairScorer, Scorer
from fashionbert_fast.inference.shards import Parts
from fashionbert_fast.objectives.pretraining import FashionBertForPreTraining
from fashionbert_fast.processor import max_text_tokens
from fashionbert_fast.run_directory import resolve_model_dir, sha256

CALIBRATED_ON = "validation"  # the split that thresholds and weights are learnt on
# What "scores" holds of each score.
FIGURES = ("alignment_accuracy", "image_to_text", "text_to_image", "median_rank", "mrr", "intervals", "random_ties",
           "queries_with_ties")  # fmt: skip
Load = Callable[..., tuple[Scorer, Path]]  # as `load_scorer`, of a model of any kind


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found. result: what `fashionbert evaluate --json` writes. ranked: the lists by every score
    asked for. lists: what `describe` gives."""

    result: dict[str, Any]
    store: FeatureStore
    ranked: Ranked
    lists: dict[str, Any]

    @property
    def scored(self) -> Scored:
        """The lists by the score that is reported first."""
        return self.ranked.scored[self.ranked.best]


def evaluate_checkpoint(checkpoint: Path, data: Path, **options: Any) -> dict[str, Any]:
    """The figures alone; see `run_evaluation`."""
    return run_evaluation(checkpoint, data, **options).result


def run_evaluation(
    checkpoint: Path,
    data: Path,
    *,
    split: str = "validation",
    protocol: str = "fashionbert",
    queries: int | None = None,
    candidates: int = DEFAULT_CANDIDATES,
    seed: int = 0,
    candidates_from: Path | None = None,
    grouping: str = "correct",
    released_batch_size: int = RELEASED_BATCH_SIZE,
    recognise: str | None = None,
    finetuning: Finetuning | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    precision: str = "fp32",
    keep: Path | None = None,
    score: str | None = None,
    shortlist: int | None = None,
    load: Load | None = None,
) -> Evaluation:
    """Open the store and the checkpoint, check that their features are the same, and evaluate. Under a launcher every
    process calls this, and has all of it but recognition, which is the first one's.

    candidates_from: lists that were saved, in place of split, protocol, queries, candidates and seed. recognise: one of
    `METHODS`; None: the probe under protocol "full". keep: a folder for what is scored until all is, so that an
    interrupted evaluation goes on; `inference.shards.forget` takes it away. score, shortlist: as of `asked_scores`.
    load: gives the scorer and its directory, of the arguments of `load_scorer`, which it is by default.

    The result says where it comes from ("precision", "split", "checkpoint", "data", and "lists", the hash of the
    candidate lists), how fast it was had ("throughput"), and in "leaks" how many products of a held-out split share a
    title, a photo or a group with training. "score" names what was ranked by, of several the one that ranks validation
    lists best; "scores" then has the figures of each. "calibration" is what was learnt of them on the split
    "calibrated_on", of which "calibration_products_reported" were evaluated as well.
    """
    store = FeatureStore.open(data)
    if candidates_from is not None:
        drawn = read_lists(candidates_from, store)
    else:
        rows = split_rows(store, split, data)
        lists = candidate_lists(
            store, rows, protocol=protocol, queries=queries, candidates=candidates, seed=seed
        )  # fmt: skip
        drawn = Drawn(lists, rows, protocol, split, seed)
    check_grouping(grouping, drawn.protocol, released_batch_size)
    scorer, model_dir = (load or load_scorer)(checkpoint, store, data, batch_size, device, precision, keep)
    if recognise not in (None, "none") and not isinstance(scorer, PairScorer):
        raise InputError(f"--recognition {recognise}: {model_dir} has no [CLS], which it reads; leave it out")
    described = describe(store, drawn)
    names = asked_scores(score, shortlist, scorer.scores)
    validation = _Validation(store, drawn, data)
    ranked = rank(
        scorer, drawn.lists, drawn.rows_N, names, score=score, shortlist=shortlist, validation=validation.lists
    )  # fmt: skip
    result = _figures(store, drawn, ranked, validation)
    if grouping == "released-faulty":
        result = released_faulty(store, ranked.scored[ranked.best], result, released_batch_size)
    result |= {"precision": precision, "split": drawn.split, "checkpoint": str(model_dir), "data": str(data)}
    work = "pairs" if names == ["match"] else "sequences"  # pairs, and titles and photos alone
    result |= {"lists": described[SEAL], "throughput": scorer.work.throughput(work)}
    if drawn.split not in ("train", "all") and drawn.split in (found := leaks(store)):
        result["leaks"] = found[drawn.split]
    how = ("probe" if drawn.protocol == "full" else "none") if recognise is None else recognise
    if isinstance(scorer, PairScorer):
        result |= _recognised(how, scorer, model_dir, drawn.rows_N, finetuning or Finetuning())
    elif recognise not in (None, "none"):
        raise InputError(
            f"--recognition {recognise}: reads FashionBERT's [CLS], which {model_dir} has not; leave it out"
        )
    return Evaluation(result, store, ranked, described)


class _Validation:
    """The candidate lists that thresholds and weights are learnt on: of the validation rows of the store, drawn as
    those that are evaluated; or these themselves, where they are of nothing else."""

    def __init__(self, store: FeatureStore, drawn: Drawn, data: Path) -> None:
        self.store, self.drawn, self.data = store, drawn, data
        splits = np.array([store.splits[row] == CALIBRATED_ON for row in drawn.rows_N.tolist()])
        self.reported, self.same = int(splits.sum()), bool(splits.all())

    def lists(self) -> tuple[CandidateLists, np.ndarray]:
        """And their rows. InputError where the store has too few."""
        store, drawn = self.store, self.drawn
        if self.same:
            return drawn.lists, drawn.rows_N
        rows_N = store.rows(CALIBRATED_ON)
        if len(rows_N) < 2:
            raise InputError(f"{self.data}: {len(rows_N)} products of split {CALIBRATED_ON!r}, on which the thresholds "
                             "and weights of scores are learnt; hold some out by `fashionbert prepare --holdout`, or "
                             "give --score match")  # fmt: skip
        queries, candidates = drawn.lists.candidates_QC.shape
        how = {"protocol": drawn.protocol, "queries": queries, "candidates": candidates, "seed": drawn.seed}
        return candidate_lists(store, rows_N, **how), rows_N


def _figures(store: FeatureStore, drawn: Drawn, ranked: Ranked, validation: _Validation) -> dict[str, Any]:
    """Those of the best score, of the others in "scores", and what was learnt."""
    by_score = {
        name: summarise(store, scored, protocol=drawn.protocol, seed=drawn.seed)
        for name, scored in ranked.scored.items()
    }
    result = by_score[ranked.best] | {"score": ranked.best}
    if len(by_score) > 1:
        scores = {name: {key: of[key] for key in FIGURES} for name, of in by_score.items()}
        for name, found in ranked.validation.items():
            scores[name]["validation"] = found
        result["scores"] = scores
    if ranked.calibrations or ranked.validation:
        known = {name: asdict(of) for name, of in ranked.calibrations.items()}
        result |= {"calibrated_on": CALIBRATED_ON, "calibration_products_reported": validation.reported}
        result["calibration"] = {
            name: {key: value for key, value in of.items() if value is not None} for name, of in known.items()
        }
    return result


def _recognised(
    how: str, scorer: PairScorer, model_dir: Path, rows_N: np.ndarray, finetuning: Finetuning
) -> dict[str, Any]:
    """What ``how`` asks for; on other ranks than the first nothing."""
    store, found = scorer.store, {}
    if how in ("probe", "both"):
        rows = np.concatenate(recognition_rows(store, rows_N))
        vectors_nH, place_N = scorer.vectors(rows), np.full(len(store), -1)  # by all ranks
        place_N[rows] = np.arange(len(rows))
        if is_main():
            found["recognition"] = recognition(store, rows_N, lambda asked: vectors_nH[place_N[asked]])
    if how in ("finetune", "both") and is_main():

        def tune(train: np.ndarray, names: Mapping[str, list[str]], measured: np.ndarray):
            model = load_model(model_dir).float().to(scorer.device)
            return finetune(model, store, scorer.titles, train, names, measured, finetuning)

        found["recognition_finetuned"] = finetuned_recognition(store, rows_N, tune)
    return found


def _identity(model_dir: Path, store: FeatureStore, scorer: PairScorer) -> str:
    """A hash of all that a score depends on but the pair: weights, features, how they are multiplied."""
    features = os.stat(store.path / "features.bin")
    made_of = {
        "model": {path.name: sha256(path) for path in sorted(model_dir.iterdir()) if path.is_file()},
        "store": store.manifest.to_dict(),
        "features": [features.st_size, features.st_mtime_ns],  # a store without hashes says no more of them
        "arithmetic": [scorer.precision, scorer.batch_size, scorer.device.type, torch.__version__, __version__],
        "titles": scorer.titles.max_text_tokens,
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def load_model(model_dir: Path) -> FashionBertForPreTraining:
    """The model of a directory, as the figures are read from it: an alignment head, and what it is put on."""
    return FashionBertForPreTraining.from_pretrained(model_dir)


def load_scorer(
    checkpoint: Path,
    store: FeatureStore,
    data: Path,
    batch_size: int | None = None,
    device: str | None = None,
    precision: str = "fp32",
    keep: Path | None = None,
) -> tuple[PairScorer, Path]:
    """The scorer of a checkpoint on a store, and the model directory it was read from.

    checkpoint: a saved model or a run directory. keep: as of `run_evaluation`. InputError when there is no model, when
    it was trained on other patch features than the store holds, or when the device does not exist.
    """
    target = pick_device(device)
    model_dir = resolve_model_dir(checkpoint)
    model = load_model(model_dir)
    tokenizer = load_tokenizer(model_dir)
    if model.feature_manifest is not None:
        require_same_features(model.feature_manifest, store.manifest, f"{model_dir} and {data}")
    trained = model.config.patches, model.config.patch_feature_size
    stored = store.manifest.patches, store.manifest.feature_size
    if trained != stored:  # a model saved without a manifest still has to fit
        raise InputError(
            f"{data}: {stored[0]} patches of {stored[1]} features, but {model_dir} takes {trained[0]} of {trained[1]}; "
            "prepare the catalogue with the model's grid and encoder"
        )
    titles = TokenizedTitles(store.titles, tokenizer, max_text_tokens(model_dir))
    model.to(target)
    batch_size = batch_size or DEFAULT_BATCH_SIZE
    scorer = PairScorer(model, store, titles, batch_size=batch_size, precision=precision)
    if keep is not None:
        scorer.parts = Parts(keep, _identity(model_dir, store, scorer))
    return scorer, model_dir


def split_rows(store: FeatureStore, split: str, data: Path) -> np.ndarray:
    """Rows of a split. InputError naming the store and the splits it has when there are none."""
    rows = store.rows(None if split == "all" else split)
    if len(rows) == 0:
        has = ", ".join(sorted({name or "(none)" for name in store.splits})) or "(no products)"
        raise InputError(f"{data}: split {split!r} has no products, the store has {has}; choose another --split")
    return rows
