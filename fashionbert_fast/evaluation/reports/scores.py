"""What a model said of each query, as a Parquet file: what two models are compared by, and what a reader may look into.

A row a query and direction: ``lists`` (the hash of the candidate lists), ``run`` (the checkpoint, and by which score if
not by match), ``direction``, ``query`` (its id), ``rank`` (of the truth, 1 at the top, behind those it ties with),
``tied`` (candidates that score the same), ``candidates`` (how many it was ranked among, itself included), ``score`` (of
the truth, by default the probability of a match), ``right`` (share of right answers about alignment, of text_to_image;
null where not asked).

Shapes: Q queries, in the order of their ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fashionbert_fast.catalogue.parquet import Table, Unreadable
from fashionbert_fast.errors import InputError
from fashionbert_fast.evaluation.ranking.protocols import DIRECTIONS, Products, Scored, alignment_right
from fashionbert_fast.evaluation.ranking.ranks import Ranks
from fashionbert_fast.files import check_file, written_file

REMEDY = "give what `fashionbert evaluate --scores FILE` wrote"
COLUMNS = ("lists", "run", "direction", "query", "rank", "tied", "right")  # of those written, what `read_scores` needs


@dataclass(frozen=True)
class QueryScores:
    """The file read back. right_Q: NaN where not asked."""

    path: Path
    lists: str
    run: str
    queries: list[str]
    ranks: dict[str, Ranks]
    right_Q: np.ndarray


def write_scores(path: Path, store: Products, scored: Scored, *, lists: str, run: str) -> None:
    """Write the file. InputError where it cannot be written."""
    ids = np.array([store.ids[row] for row in scored.rows_N[scored.lists.queries_Q]], dtype=object)
    order_Q, Q = np.argsort(ids, kind="stable"), len(ids)
    left_out_QC = scored.lists.left_out_QC
    candidates_Q = np.full(Q, scored.lists.candidates_QC.shape[1])
    candidates_Q = candidates_Q if left_out_QC is None else candidates_Q - left_out_QC.sum(axis=1)
    parts = []
    for direction, ranks in scored.ranks().items():
        right_Q = alignment_right(scored) if direction == "text_to_image" else np.full(Q, np.nan)
        columns = {
            "query": ids, "rank": ranks.rank_Q, "tied": ranks.tied_Q, "candidates": candidates_Q,
            "score": scored.scores_QC(direction)[np.arange(Q), scored.lists.truth_Q], "right": right_Q,
        }  # fmt: skip
        same = {"lists": [lists] * Q, "run": [run] * Q, "direction": [direction] * Q}
        table = {name: pa.array(values[order_Q], from_pandas=name == "right") for name, values in columns.items()}
        parts.append(pa.table(same | table))
    with written_file(path) as partial:
        pq.write_table(pa.concat_tables(parts), partial)


def read_scores(path: Path) -> QueryScores:
    """Read what `write_scores` wrote. InputError on anything else."""
    check_file(path, REMEDY, 2**32)
    try:
        table = Table(path)
        if missing := [name for name in COLUMNS if name not in table.columns]:
            raise Unreadable(f"no column {missing[0]}")
        rows = list(table.rows(COLUMNS))
        return _parsed(path, rows)
    except (Unreadable, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{path}: holds no scores of queries ({error}); {REMEDY}") from error


def _parsed(path: Path, rows: list[dict]) -> QueryScores:
    by = {direction: [row for row in rows if row["direction"] == direction] for direction in DIRECTIONS}
    queries = [[row["query"] for row in part] for part in by.values()]
    if not queries[0] or queries[0] != queries[1] or len(rows) != 2 * len(queries[0]):
        raise Unreadable("not the same queries in both directions")
    if len(of := {(row["lists"], row["run"]) for row in rows}) != 1:
        raise Unreadable("of several runs")
    ((lists, run),) = of
    ranks = {}
    for direction, part in by.items():
        rank_Q, tied_Q = (np.array([row[name] for row in part], dtype=np.int64) for name in ("rank", "tied"))
        ranks[direction] = Ranks(rank_Q - tied_Q - 1, tied_Q)
    right_Q = np.array([row["right"] for row in by["text_to_image"]], dtype=np.float64)
    return QueryScores(path, str(lists), str(run), queries[0], ranks, right_Q)
