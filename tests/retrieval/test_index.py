"""INDEX: each structure answers as comparing all vectors does, comes back as it was, and believes no file."""

from __future__ import annotations

import json
import shutil
import struct

import numpy as np
import pytest
from training import fashionbert

from fashionbert_fast.errors import InputError
from fashionbert_fast.files import seal
from fashionbert_fast.retrieval import index as index_module
from fashionbert_fast.retrieval.embedding_store import Products, Vectors, file_hashes, write_vectors
from fashionbert_fast.retrieval.index import Index, build_index, choose_kind, recall_of
from fashionbert_fast.retrieval.index_kinds import STRUCTURES
from fashionbert_fast.run_directory import sha256

ROWS, DIMS = 1500, 24
KINDS = tuple(STRUCTURES)


def unit(vectors_NH: np.ndarray) -> np.ndarray:
    return (vectors_NH / np.linalg.norm(vectors_NH, axis=1, keepdims=True)).astype(np.float32)


def made_up(rows: int = ROWS) -> np.ndarray:
    """Vectors around 40 middles, as products around their kinds; the last ten are one another's twins."""
    generator = np.random.default_rng(0)
    middles = generator.standard_normal((40, DIMS))
    vectors_NH = unit(middles[generator.integers(40, size=rows)] + 0.5 * generator.standard_normal((rows, DIMS)))
    vectors_NH[-10:] = vectors_NH[-1]
    return vectors_NH


def asked(count: int, seed: int) -> np.ndarray:
    """Queries: near products, equal to none."""
    generator = np.random.default_rng([1, seed])
    return unit(made_up()[generator.integers(ROWS, size=count)] + 0.3 * generator.standard_normal((count, DIMS)))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """VECTORS of 1,500 products."""
    out = tmp_path_factory.mktemp("large") / "vectors"
    texts = [[f"{name}{row}" for row in range(ROWS)] for name in ("id", "title ", "kind ", "sub ", "photos/")]
    manifest = {"of": "both", "split": "all", "precision": "fp32", "features": {}, "store": {"path": "s",
                "content_sha256": "0"}, "model": {"path": "m", "sha256": "0"}}  # fmt: skip
    write_vectors(out, made_up(), asked(100, seed=0), Products(*texts, np.arange(ROWS)), manifest)
    return out


@pytest.fixture(scope="module")
def indices(large):
    """Of each kind one."""
    for kind in KINDS:
        build_index(large, large.parent / kind, kind=kind)
    return large.parent


@pytest.mark.parametrize("kind", KINDS)
def test_it_finds_what_comparing_all_finds(indices, large, kind):
    index, vectors_NH = Index.open(indices / kind), Vectors.open(large).vectors_NH
    queries_QH = asked(200, seed=1)
    cosines_QN = queries_QH @ vectors_NH.T
    assert index.recall(queries_QH) >= 0.99
    assert index.manifest["recall"]["recall@10"] >= 0.99 and index.manifest["recall"]["queries"] == 100
    found = [index.search(query_H) for query_H in queries_QH]
    right = sum(cosine >= np.sort(cosines_N)[-10] - 1e-6
                for hits, cosines_N in zip(found, cosines_QN, strict=True) for _, cosine in hits)  # fmt: skip
    assert right >= 0.99 * 2000
    for hits, cosines_N in zip(found, cosines_QN, strict=True):
        assert [cosine for _, cosine in hits] == sorted((cosine for _, cosine in hits), reverse=True)
        assert all(cosine == pytest.approx(cosines_N[row], abs=1e-5) for row, cosine in hits)


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_it_answers_as_the_one_that_was_built(large, tmp_path, kind, monkeypatch):
    built, structure = [], STRUCTURES[kind]
    build = structure.build
    monkeypatch.setattr(structure, "build", lambda vectors_NH: built.append(build(vectors_NH)) or built[-1])
    build_index(large, tmp_path / "i", kind=kind)
    opened, queries_QH = Index.open(tmp_path / "i"), made_up(300)
    for mine, theirs in zip(
        opened.structure.search(queries_QH, 7), built[0].search(queries_QH, 7), strict=True
    ):  # fmt: skip
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("rows", [1, 90, 300, 700])
def test_a_graph_is_entered_where_it_was(rows):
    """Of several nodes in the top layer, where there are, at the same."""
    built = STRUCTURES["hnsw"].build(made_up(ROWS)[:rows])
    restored = STRUCTURES["hnsw"].restore(made_up(ROWS)[:rows], built.arrays())
    for name in ("entry_point", "max_level"):
        assert getattr(built.index.hnsw, name) == getattr(restored.index.hnsw, name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_among_some_rows_compares_all_of_them(indices, large, kind):
    index, vectors_NH = Index.open(indices / kind), Vectors.open(large).vectors_NH
    rows = np.arange(3, ROWS, 97)
    found = index.search(vectors_NH[50], 5, rows)
    expected = rows[np.argsort(-(vectors_NH[rows] @ vectors_NH[50]), kind="stable")[:5]]
    assert [row for row, _ in found] == expected.tolist()
    assert len(index.search(vectors_NH[50], 50, rows[:4])) == 4
    assert len(index.search(vectors_NH[50], 10**6)) == (
        ROWS if kind == "flat" else len(index.search(vectors_NH[50], ROWS))
    )


def test_recall_counts_ties_as_found_and_misses_as_missed():
    exact_Qk = np.array([[0.9, 0.8, 0.8], [0.5, 0.4, -3.4e38]], np.float32)
    rows_Qk = np.array([[5, 6, 7], [1, 2, -1]])
    assert recall_of((exact_Qk, rows_Qk), exact_Qk) == 1
    found = np.array([[0.9, 0.8, 0.7], [0.5, -3.4e38, -3.4e38]], np.float32)
    assert recall_of((found, np.array([[5, 9, 8], [1, -1, -1]])), exact_Qk) == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_the_effort_is_raised_until_the_recall_is_there(large, tmp_path, monkeypatch):
    def effort_for(recall: float) -> int:
        monkeypatch.setattr(index_module, "RECALL", recall)
        return build_index(large, tmp_path / f"{recall}", kind="ivf")["effort"]

    few, all_cells = effort_for(0.1), effort_for(1.1)
    assert few == 16 and all_cells == len(np.load(tmp_path / "1.1" / "centroids.npy")) > 16


def test_the_kind_is_chosen_by_size():
    assert [choose_kind(rows) for rows in (1, 50_000, 50_001, 1_000_000, 1_000_001)] == [
        "flat", "flat", "hnsw", "hnsw", "ivf"]  # fmt: skip


def test_the_command_and_an_index_without_its_vectors(vectors, tmp_path):
    shutil.copytree(vectors, tmp_path / "v")
    done = fashionbert("index", str(tmp_path / "v"), "--out", str(tmp_path / "i"), "--kind", "hnsw")
    assert done.returncode == 0 and "recall@10" in done.stdout and "16 candidates a query" in done.stdout
    shutil.rmtree(tmp_path / "v")
    index = Index.open(tmp_path / "i")
    assert index.search(Vectors.open(vectors).vectors_NH[4])[0] == (4, pytest.approx(1, abs=1e-5))
    assert index.products.ids[4] == "1005"
    again = fashionbert("index", str(vectors), "--out", str(tmp_path / "i"))
    assert again.returncode == 2 and "add --overwrite" in again.stderr
    assert fashionbert("index", str(vectors), "--out", str(tmp_path / "i"), "--overwrite").returncode == 0
    assert Index.open(tmp_path / "i").manifest["kind"] == "flat"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["nowhere", "--out", "i"], "nowhere: no such directory; make one with: fashionbert embed --out nowhere"),
        (["VECTORS"], "nowhere to write to; give --out INDEX"),
        (["SHOP", "--out", "i"], "no vectors.json in it; make one with: fashionbert embed"),
        (["VECTORS", "--out", "SHOP"], "exists and has no index.json; choose another --out"),
        (["VECTORS", "--to", "qdrant"], "--to qdrant: which collection? give --collection NAME"),
    ],
)
def test_what_cannot_be_indexed_is_one_line(vectors, shop, tmp_path, monkeypatch, words, complaint):
    monkeypatch.chdir(tmp_path)
    done = fashionbert("index", *({"VECTORS": str(vectors), "SHOP": str(shop)}.get(word, word) for word in words))
    assert done.returncode == 2 and complaint in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "i").exists()


# Damage and strangers ------------------------------------------------------------------------------------------------
def reseal(folder, manifest_name: str = "index.json", **changes) -> None:
    """What a stranger would do: hashes and seal made to fit."""
    manifest = json.loads((folder / manifest_name).read_text())
    manifest.pop("manifest_sha256")
    (folder / manifest_name).unlink()
    (folder / manifest_name).write_text(json.dumps(seal(manifest | {"files": file_hashes(folder)} | changes)))


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_a_line(indices, tmp_path, kind):
    """Every file cut, missing, or with one bit turned."""
    for name in sorted(path.name for path in (indices / kind).iterdir()):
        for what in ("cut", "missing", "flipped"):
            folder = tmp_path / f"{name}-{what}"
            shutil.copytree(indices / kind, folder)
            data = bytearray((folder / name).read_bytes())
            data[len(data) // 2] ^= 4
            (folder / name).write_bytes(data[: len(data) // 2] if what == "cut" else data)
            if what == "missing":
                (folder / name).unlink()
            with pytest.raises(InputError, match=rf"{name}.*; make (it again|one) with"):
                Index.open(folder)


def edit_array(folder, name: str, change) -> None:
    values = np.load(folder / name)
    np.save(folder / name, change(values))


def at(place, value):
    def change(values: np.ndarray) -> np.ndarray:
        values[place] = value
        return values

    return change


HOSTILE = [
    ("hnsw", "neighbours.npy", at(5, 10**9), "edges lead out"),
    ("hnsw", "neighbours.npy", at(5, -2), "edges lead out"),
    ("hnsw", "neighbours.npy", lambda values: values[:-64], "edges lead out|holds int32"),
    ("hnsw", "levels.npy", at(3, 0), "levels cannot be"),
    ("hnsw", "levels.npy", at(3, 1000), "levels cannot be"),
    ("hnsw", "levels.npy", lambda values: values[:-1], "holds int32"),
    ("ivf", "cells.npy", at(7, 10**6), "cells cannot be"),
    ("ivf", "cells.npy", at(7, -1), "cells cannot be"),
    ("ivf", "centroids.npy", at((0, 0), np.nan), "cells cannot be"),
    ("ivf", "centroids.npy", lambda values: values[:, :-1].copy(), "holds float32"),
    ("flat", "vectors.npy", at((0, 0), np.inf), "holds NaN or infinity"),
    ("flat", "vectors.npy", lambda values: values.astype(object), "cannot be read"),
    ("flat", "vectors.npy", lambda values: np.asfortranarray(values), "holds float32"),
    ("flat", "vectors.npy", lambda values: values[:-1], "holds float32"),
]


@pytest.mark.parametrize(("kind", "name", "change", "complaint"), HOSTILE)
def test_a_strangers_arrays_are_checked_before_they_are_used(indices, tmp_path, kind, name, change, complaint):
    shutil.copytree(indices / kind, tmp_path / "i")
    edit_array(tmp_path / "i", name, change)
    reseal(tmp_path / "i")
    with pytest.raises(InputError, match=complaint):
        Index.open(tmp_path / "i")


def test_an_edge_out_of_its_layer_is_refused(indices, tmp_path):
    shutil.copytree(indices / "hnsw", tmp_path / "i")
    levels_N = np.load(tmp_path / "i" / "levels.npy")
    node = int(np.flatnonzero(levels_N > 1)[0])
    first = int(np.where(levels_N[:node] > 0, 64 + 32 * (levels_N[:node] - 1), 0).sum()) + 64  # of its upper layer
    edit_array(tmp_path / "i", "neighbours.npy", at(first, int(np.flatnonzero(levels_N == 1)[0])))
    reseal(tmp_path / "i")
    with pytest.raises(InputError, match="out of their layer"):
        Index.open(tmp_path / "i")


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": 2**50}, {"rows": -1}, {"rows": 1.5}, {"dims": 0}, {"kind": "nsg"}, {"effort": 10**9},
        {"dtype": "object"}, {"model": {}}, {"store": []}, {"shapes": {}},
        {"shapes": {"levels": [ROWS], "neighbours": [2**62]}},
        {"format_version": 2}, {"of": "all"}, {"files": {}},
    ],
)  # fmt: skip
def test_a_strangers_manifest_is_not_believed(indices, tmp_path, changes):
    shutil.copytree(indices / "hnsw", tmp_path / "i")
    reseal(tmp_path / "i", **changes)
    with pytest.raises(InputError, match="make it again"):
        Index.open(tmp_path / "i")


def test_a_header_that_claims_more_than_the_file_has_takes_no_memory(indices, tmp_path):
    shutil.copytree(indices / "flat", tmp_path / "i")
    shape = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**40}, {DIMS}), }}".encode().ljust(117) + b"\n"
    (tmp_path / "i" / "vectors.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(shape)) + shape)
    reseal(tmp_path / "i", rows=2**40)
    with pytest.raises(InputError, match="holds float32"):
        Index.open(tmp_path / "i")


def test_a_copy_that_was_edited_says_so(indices, tmp_path):
    shutil.copytree(indices / "flat", tmp_path / "i")
    text = (tmp_path / "i" / "index.json").read_text()
    (tmp_path / "i" / "index.json").write_text(text.replace('"flat"', '"hnsw"'))
    with pytest.raises(InputError, match="was edited or is damaged"):
        Index.open(tmp_path / "i")


def test_a_missing_package_is_a_line(vectors, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    done = fashionbert("index", str(vectors), "--out", str(tmp_path / "i"))
    assert done.returncode == 2 and "faiss is not installed; pip install 'fashionbert_fast[search]'" in done.stderr


def test_an_index_names_the_hash_of_its_vectors(indices, large):
    manifest = Index.open(indices / "ivf").manifest
    assert manifest["vectors"] == {"path": str(large), "sha256": sha256(large / "vectors.npy")}
