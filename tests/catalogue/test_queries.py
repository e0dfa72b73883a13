"""Queries of a catalogue: rows of its own, a table of clicks beside it, and what both may hold that is none."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fashionbert_fast.catalogue.product import Problems
from fashionbert_fast.catalogue.queries import listed, read_queries
from fashionbert_fast.catalogue.read import read_catalogue
from fashionbert_fast.errors import InputError

PRODUCTS = "id,title,image,query\n1,Red shirt,1.jpg,{}\n2,Blue shirt,1.jpg,\n"


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "1.jpg").write_bytes(b"a photo")
    (tmp_path / "shop.csv").write_text(PRODUCTS.format("red top"))
    return tmp_path


def read(folder: Path, name: str = "shop.csv", **options):
    problems = Problems()
    products = read_catalogue(folder / name, problems=problems, **options)
    return {product.id: listed(product.queries) for product in products}, problems


def clicks(folder: Path, name: str, text: str):
    problems = Problems()
    products = read_catalogue(folder / "shop.csv", problems=problems)
    (folder / name).write_text(text)
    given = read_queries(folder / name, products, problems).given_to(products)
    return {product.id: listed(product.queries) for product in given}, problems


def test_rows_of_one_product_are_its_queries_and_no_duplicates(folder):
    more = "1,Red shirt,1.jpg,shirt   red\n1,Red shirt,1.jpg,RED  top!\n1,Again,1.jpg,\n2,Blue shirt,1.jpg,red top\n"
    (folder / "shop.csv").write_text(PRODUCTS.format("red top") + more)
    found, problems = read(folder)
    assert found == {"1": ["red top", "shirt red"], "2": ["red top"]}
    assert [(p.row, p.kind) for p in problems.items] == [(6, "duplicate id")]  # it has no query: a second row
    assert read(folder, columns={"query": ""})[0] == {"1": [], "2": []}


def test_an_object_of_json_may_list_its_queries(folder):
    rows = [{"id": 1, "title": "Red shirt", "image": "1.jpg", "queries": ["red\ttop", "", 7, "a\nshirt"]},
            {"id": 2, "title": "Blue shirt", "image": "1.jpg", "queries": [["no text"]]}]  # fmt: skip
    (folder / "shop.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, problems = read(folder, "shop.jsonl")
    assert found == {"1": ["red top", "7", "a shirt"]}  # what is between the lines of a query is a blank
    assert "holds an object or a list" in problems.items[0].what


def test_clicks_come_after_a_products_own_and_count_once(folder):
    table = "query,clicks,id\nshirt,3,1\nSHIRT,1,1\nred top,9,1\nred top,9,2\n"
    found, problems = clicks(folder, "clicks.csv", table)
    assert found == {"1": ["red top", "shirt"], "2": ["red top"]}
    assert problems.count == 0


def test_what_is_no_pair_is_named_and_the_rest_goes_on(folder):
    rows = [
        {"query": "shirt", "id": 1},
        {"query": " ?! ", "id": 1},
        {"query": "shirt"},
        {"query": "shirt", "id": 99},
        {"query": ["shirt"], "id": 1},
        {"query": "\ud800", "id": 1},
        {"query": "x" * 20_000, "id": 1},
        "shirt",
    ]
    found, problems = clicks(folder, "clicks.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert found == {"1": ["red top", "shirt"], "2": []}
    assert sorted((p.row, p.kind) for p in problems.items) == [
        (2, "empty query"), (3, "missing id"), (4, "unknown product"), (5, "bad row"), (6, "bad row"), (7, "bad row"),
        (8, "bad row"),
    ]  # fmt: skip
    (folder / "clicks.jsonl").write_text('{"query": "?", "id": 1}\n')
    with pytest.raises(InputError, match=r"clicks.jsonl: row 1: query has no word; correct it"):
        read_queries(folder / "clicks.jsonl", [], Problems(strict=True))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("clicks.csv", "query,product\nshirt,1\n", "no column id, it has query, product; give a .csv"),
        ("clicks.csv", "query,id\n", "no row has a query of a product that can be used; give one with rows"),
        (
            "clicks.csv",
            "query,id\nshirt,3\n",
            "no row has .*; the first problem: .*row 2: id 3 is none of the catalogue's products",
        ),
        ("clicks.txt", "query,id\nshirt,1\n", "unknown kind of table '.txt'; give a .csv"),
        ("clicks.parquet", "query", "is not a Parquet file"),
    ],
)
def test_a_table_that_cannot_be_used_is_a_line(folder, name, text, said):
    with pytest.raises(InputError, match=f"{name}: {said}"):
        clicks(folder, name, text)


def test_a_table_that_is_not_there_and_lists_of_parquet(folder):
    with pytest.raises(InputError, match=r"none.csv: cannot be read"):
        read_queries(folder / "none.csv", [], Problems())
    pq.write_table(pa.table({"id": ["1"], "query": [["shirt"]]}), folder / "clicks.parquet")
    with pytest.raises(InputError, match=r"column query is of list.*a row each, in --queries FILE"):
        read_queries(folder / "clicks.parquet", [], Problems())
