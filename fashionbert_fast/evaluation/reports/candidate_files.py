"""Candidate lists as a file: other models, and other stores of the same products, then face the very same questions.

    {"format": "...", "protocol": "fashionbert", "split": "validation", "seed": 0, "lists": [
     {"query": id, "negative": id or null, "tier": 0, "candidates": [id, ...]},     # protocol fashionbert
     {"query": id, "negative": id or null, "tier": 0, "left_out": [id, ...]}, ...   # full: of all "products": [id, ...]
    ], "manifest_sha256": "..."}

Products are named by their ids, so any store that has them will do. The hash is over all else: two evaluations with one
hash asked the same. Fields are those of `CandidateLists`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fashionbert_fast.errors import InputError
from fashionbert_fast.evaluation.ranking.candidates import CandidateLists, CandidateSampler, full_lists_of, lists_of
from fashionbert_fast.evaluation.ranking.protocols import PROTOCOLS, Products, sampler_of
from fashionbert_fast.files import SEAL, is_sealed, read_json, seal, write_text

FORMAT = "fashionbert_fast candidate lists 1"
MOST_BYTES = 2**30
REMEDY = "save the lists again with `fashionbert evaluate --save-candidates`"


@dataclass(frozen=True)
class Drawn:
    """Lists, the store rows that their positions stand for, and how they were drawn."""

    lists: CandidateLists
    rows_N: np.ndarray
    protocol: str
    split: str
    seed: int


def describe(store: Products, drawn: Drawn) -> dict[str, Any]:
    """What the file holds, hash included; the same for the same lists, whatever the order of the store's rows."""
    lists, ids_N = drawn.lists, [store.ids[row] for row in drawn.rows_N.tolist()]
    value = {"format": FORMAT, "protocol": drawn.protocol, "split": drawn.split, "seed": drawn.seed}
    full, described = drawn.protocol == "full", []
    if full:
        value["products"] = sorted(ids_N)
    nowhere_C = np.zeros(lists.candidates_QC.shape[1], dtype=bool)
    for place, query in enumerate(lists.queries_Q.tolist()):
        candidates_C, negative = lists.candidates_QC[place], int(lists.negatives_Q[place])
        left_out_C = nowhere_C if lists.left_out_QC is None else lists.left_out_QC[place]
        one = {"query": ids_N[query], "tier": int(lists.tier_Q[place])}
        one["negative"] = None if negative < 0 else ids_N[candidates_C[negative]]
        if full:
            one["left_out"] = sorted(ids_N[i] for i in np.flatnonzero(left_out_C))
        else:
            one["candidates"] = [ids_N[i] for i in candidates_C[~left_out_C]]
        described.append(one)
    return seal(value | {"lists": sorted(described, key=lambda one: one["query"])})


def write_lists(path: Path, described: dict[str, Any]) -> None:
    """Write what `describe` gave, a query a line. InputError where the file cannot be written."""
    head = json.dumps({name: part for name, part in described.items() if name != "lists"})
    write_text(path, head[:-1] + ', "lists": [\n' + ",\n".join(map(json.dumps, described["lists"])) + "\n]}\n")


def read_lists(path: Path, store: Products) -> Drawn:
    """The lists of the file ``path`` as positions in ``store``.

    Raises:
        InputError: it is no such file, it was edited, or the store has not a product that it names.
    """
    value = read_json(path, REMEDY, MOST_BYTES)
    if value.get("format") != FORMAT or value.get("protocol") not in PROTOCOLS:
        raise InputError(f"{path}: holds no candidate lists of this version; {REMEDY}")
    if not is_sealed(value):
        raise InputError(f"{path}: was edited or is damaged: its {SEAL} does not belong to its fields; {REMEDY}")
    try:
        return _placed(path, value, store)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: holds no candidate lists ({type(error).__name__}: {error}); {REMEDY}") from error


def _placed(path: Path, value: dict[str, Any], store: Products) -> Drawn:
    """The lists as positions in the products that they name, which are ordered by id: by no store's rows."""
    row_of = {id_: row for row, id_ in enumerate(store.ids)}
    lists = value["lists"]
    named = {id_ for one in lists for id_ in [one["query"], *one.get("candidates", ())]} | set(
        value.get("products", ())
    )
    if strangers := sorted(named - row_of.keys()):
        raise InputError(
            f"{path}: names product {strangers[0]}, which the store has not ({len(strangers)} such of {len(named)}); "
            "evaluate on a store of the same products"
        )
    place_of = {id_: place for place, id_ in enumerate(sorted(named))}
    rows_N = np.array([row_of[id_] for id_ in place_of], dtype=np.int64)
    make = _full if value["protocol"] == "full" else _listed
    made = make(lists, place_of, sampler_of(store, rows_N, value["seed"]))
    return Drawn(made, rows_N, value["protocol"], value["split"], value["seed"])


def _full(lists: list[dict], place_of: dict[str, int], sampler: CandidateSampler) -> CandidateLists:
    left_out_QN = None
    if any(one["left_out"] for one in lists):
        left_out_QN = np.zeros((len(lists), len(place_of)), dtype=bool)
        for left_out_N, one in zip(left_out_QN, lists, strict=True):
            left_out_N[[place_of[id_] for id_ in one["left_out"]]] = True
    queries_Q = np.array([place_of[one["query"]] for one in lists])
    negatives_Q = np.array([-1 if one["negative"] is None else place_of[one["negative"]] for one in lists])
    return full_lists_of(sampler, queries_Q, left_out_QN, negatives_Q)


def _listed(lists: list[dict], place_of: dict[str, int], sampler: CandidateSampler) -> CandidateLists:
    queries_Q = np.array([place_of[one["query"]] for one in lists])
    candidates_QC = np.repeat(queries_Q[:, None], max(len(one["candidates"]) for one in lists), axis=1)
    left_out_QC = np.ones(candidates_QC.shape, dtype=bool)
    for place, one in enumerate(lists):
        count = len(one["candidates"])
        candidates_QC[place, :count] = [place_of[id_] for id_ in one["candidates"]]
        left_out_QC[place, :count] = False
    columns = [one["candidates"].index for one in lists]
    truth_Q = np.array([of(one["query"]) for of, one in zip(columns, lists, strict=True)])
    negatives_Q = np.array(
        [-1 if one["negative"] is None else of(one["negative"]) for of, one in zip(columns, lists, strict=True)]
    )
    tier_Q = np.array([one["tier"] for one in lists])
    return lists_of(sampler, queries_Q, candidates_QC, left_out_QC, truth_Q, tier_Q, negatives_Q)
