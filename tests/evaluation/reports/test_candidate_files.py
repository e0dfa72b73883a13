"""Candidate lists on disk: the same questions again, for another model or another store."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fashionbert_fast.errors import InputError
from fashionbert_fast.evaluation.ranking.protocols import candidate_lists, score_lists, summarise
from fashionbert_fast.evaluation.reports.candidate_files import Drawn, describe, read_lists, write_lists
from fashionbert_fast.files import SEAL, seal

SIZES = {("clothes", "shirts"): 24, ("clothes", "skirts"): 6, ("bags", "totes"): 1}


@pytest.fixture
def shop(make_products):
    """31 products, three of them views of one."""
    store = make_products(SIZES)
    for row in (2, 3, 25):
        store.groups[row] = "one"
    return store


def draw(store, protocol="fashionbert", queries=None, candidates=9):
    rows = store.rows(None)
    lists = candidate_lists(store, rows, protocol=protocol, queries=queries, candidates=candidates, seed=4)
    return Drawn(lists, rows, protocol, "validation", 4)


def by_id(store, text_rows, image_rows):
    """Scores that know products by their ids, not by their rows."""
    number = np.array([int.from_bytes(id_.encode(), "big") % 100_003 for id_ in store.ids])
    return (number[text_rows] * 7919 + number[image_rows] * 104_729) % 1_000_003 / 1_000_003


def figures(store, drawn):
    scored = score_lists(drawn.lists, drawn.rows_N, lambda text, image: by_id(store, text, image))
    return summarise(store, scored, protocol=drawn.protocol, seed=drawn.seed)


@pytest.mark.parametrize("protocol,queries", [("fashionbert", None), ("fashionbert", 7), ("full", None), ("full", 7)])
def test_lists_read_back_are_the_lists(shop, tmp_path, protocol, queries):
    drawn = draw(shop, protocol, queries, candidates=40)  # more than there are: the views are left out of three lists
    described = describe(shop, drawn)
    write_lists(tmp_path / "lists.json", described)
    again = read_lists(tmp_path / "lists.json", shop)
    assert (again.protocol, again.split, again.seed) == (protocol, "validation", 4)
    assert figures(shop, again) == figures(shop, drawn)
    assert describe(shop, again) == described == json.loads((tmp_path / "lists.json").read_text())


@pytest.mark.parametrize("protocol", ["fashionbert", "full"])
def test_another_store_with_other_rows_faces_the_same_lists(shop, make_products, tmp_path, protocol):
    described = describe(shop, draw(shop, protocol))
    write_lists(tmp_path / "lists.json", described)
    other = make_products({("new", "new"): 5, **dict(reversed(SIZES.items()))})  # more products, in another order
    for row, id_ in enumerate(other.ids):
        if id_ in shop.ids:
            other.groups[row] = shop.groups[shop.ids.index(id_)]
    again = read_lists(tmp_path / "lists.json", other)
    assert describe(other, again)[SEAL] == described[SEAL]
    assert figures(other, again) == figures(shop, draw(shop, protocol))


def test_lists_of_another_seed_or_size_have_another_hash(shop):
    hashes = {describe(shop, draw(shop, candidates=candidates))[SEAL] for candidates in (8, 9, 10)}
    assert len(hashes) == 3


def test_a_product_that_the_store_has_not_is_named(shop, make_products, tmp_path):
    write_lists(tmp_path / "lists.json", describe(shop, draw(shop)))
    other = make_products({("clothes", "shirts"): 24, ("clothes", "skirts"): 5, ("bags", "totes"): 1})
    with pytest.raises(
        InputError, match=r"lists.json: names product clothes-skirts-5, which .* \(1 such of 31\)"
    ) as told:
        read_lists(tmp_path / "lists.json", other)
    assert "\n" not in str(told.value)


def without_its_query(value):
    value["lists"][3]["candidates"].remove(value["lists"][3]["query"])


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda value: value | {"seed": 5}, "was edited or is damaged"),
        (lambda value: seal({"format": "something"}), "no candidate lists of this version"),
        (lambda value: seal({k: v for k, v in value.items() if k not in ("lists", SEAL)}), "KeyError"),
        (lambda value: seal({k: v for k, v in value.items() if k != SEAL} | {"lists": []}), "no candidate lists"),
        (lambda value: seal({k: v for k, v in value.items() if k != SEAL} | {"lists": [3]}), "TypeError"),
        (lambda value: without_its_query(value) or seal({k: v for k, v in value.items() if k != SEAL}), "ValueError"),
    ],
)
def test_what_is_no_list_is_one_line(shop, tmp_path, change, message):
    (tmp_path / "lists.json").write_text(json.dumps(change(describe(shop, draw(shop)))))
    with pytest.raises(InputError, match=message) as told:
        read_lists(tmp_path / "lists.json", shop)
    assert "\n" not in str(told.value) and "lists.json" in str(told.value)
