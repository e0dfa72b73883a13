"""Twins: what counts as one product, through whom, and what of it stands on both sides of a split."""

from __future__ import annotations

import pytest

from fashionbert_fast.catalogue.twins import bound, connected, leaks, normalised_title, twins

COLUMNS = {
    "id": ["a", "b", "c", "d", "e", "f"],
    "title": ["Red hat", "red  HAT!", "Cap", "Cap", "Scarf", "Belt"],
    "image_hash": ["1", "2", "3", "", "", "1"],
    "group": ["", "", "g", "", "g", ""],
    "split": ["train", "validation", "train", "test", "validation", "validation"],
}


@pytest.mark.parametrize(
    ("title", "same"),
    [("Red hat", "red  HAT!"), ("Straße", "STRASSE"), ("Tee-shirt", "tee shirt"), ("Ｓｉｚｅ ②", "size 2"),
     ("cafe\u0301", "café")],
)  # fmt: skip
def test_titles_that_read_the_same(title, same):
    assert normalised_title(title) == normalised_title(same) != ""


def test_titles_that_do_not():
    different = ["Red hat", "Redhat", "Red hat 2", "Red hat 3", "Réd hat", "赤い帽子", "赤い靴"]
    assert len({normalised_title(title) for title in different}) == len(different)


def test_connected_goes_through_others_and_ignores_empty_keys():
    assert connected(["x", "", "", "y", ""], ["", "", "p", "p", ""], ["", "q", "", "q", ""]).tolist() == [0, 1, 1, 1, 4]
    # two chains that only the last row joins: the number is the first row of all that hang together
    assert connected(["a", "", "b", "b", ""], ["", "c", "", "", "c"], ["", "", "", "d", "d"]).tolist() == [
        0,
        1,
        1,
        1,
        1,
    ]
    assert connected(["", "a", "b"], ["k", "", "k"], ["", "z", "z"]).tolist() == [0, 0, 0]


def test_bound_by_what_is_asked_for():
    assert twins(COLUMNS["group"], COLUMNS["title"], COLUMNS["image_hash"]).tolist() == [0, 0, 2, 2, 2, 0]
    assert bound(COLUMNS, ("group", "title", "photo")).tolist() == [0, 0, 2, 2, 2, 0]
    assert bound(COLUMNS, ("title",)).tolist() == [0, 0, 2, 2, 4, 5]
    assert bound(COLUMNS, ("photo",)).tolist() == [0, 1, 2, 3, 4, 0]
    assert bound(COLUMNS, ("group",)).tolist() == [0, 1, 2, 3, 2, 5]
    assert bound(COLUMNS, ()).tolist() == [0, 1, 2, 3, 4, 5]


def test_leaks_are_counted_by_split_and_kind_each_product_once():
    assert leaks(COLUMNS) == {
        "test": {"products": 1, "title": 1, "photo": 0, "group": 0},
        "validation": {"products": 3, "title": 1, "photo": 1, "group": 1},
    }
    both = COLUMNS | {"image_hash": ["1", "1", "3", "", "", ""]}
    assert leaks(both)["validation"] == {"products": 2, "title": 1, "photo": 1, "group": 1}
    assert leaks(COLUMNS | {"split": ["train"] * 6}) == {}
