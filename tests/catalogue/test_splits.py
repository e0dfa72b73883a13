"""The hold-out: twins together, by content alone, about as many as asked for, and a word where it is not."""

from __future__ import annotations

import hashlib

import pytest

from fashionbert_fast.catalogue.splits import hold_out, parse_split_by, split_warnings
from fashionbert_fast.errors import InputError

ALL = ("group", "title", "photo")


def columns_of(count: int, *, families: int = 0) -> dict[str, list[str]]:
    """``count`` rows; each of the first ``families`` titles is shared by three rows."""
    titles = [f"t{i // 3 if i < 3 * families else i}" for i in range(count)]
    return {"id": [str(i) for i in range(count)], "title": titles, "group": [""] * count, "image_hash": [""] * count}


def in_other_order(columns: dict[str, list[str]]) -> dict[str, list[str]]:
    order = sorted(range(len(columns["id"])), key=lambda row: columns["id"][row][::-1] + "x")
    return {name: [values[row] for row in order] for name, values in columns.items()}


def held(columns: dict[str, list[str]], splits: list[str]) -> set[str]:
    return {identity for identity, split in zip(columns["id"], splits, strict=True) if split == "validation"}


def test_a_function_of_seed_and_content_not_of_order():
    columns = columns_of(4000, families=500)
    splits = hold_out(columns, 0.1, 0, ALL)
    ours = held(columns, splits)
    assert 300 < len(ours) < 500 and set(splits) == {"train", "validation"}
    for first in range(0, 1500, 3):
        assert len({splits[first], splits[first + 1], splits[first + 2]}) == 1
    other = in_other_order(columns)
    assert other["id"] != columns["id"] and held(other, hold_out(other, 0.1, 0, ALL)) == ours
    assert held(columns, hold_out(columns, 0.1, 1, ALL)) != ours
    assert set(hold_out(columns, 0.0, 0, ALL)) == {"train"}


def test_more_products_leave_the_others_where_they_were():
    fewer, more = columns_of(1000), columns_of(4000)
    assert held(fewer, hold_out(fewer, 0.1, 0, ALL)) == {
        i for i in held(more, hold_out(more, 0.1, 0, ALL)) if int(i) < 1000
    }


def hashed(columns: dict[str, list[str]], holdout: float, seed: int) -> set[str]:
    """What the hashes alone hold out where nothing binds; the hash is part of what stores and docs promise."""
    digests = {identity: hashlib.sha256(f"{seed} {identity}".encode()).hexdigest() for identity in columns["id"]}
    return {identity for identity, digest in digests.items() if int(digest[:16], 16) < holdout * 2**64}


def test_small_catalogues_hold_out_what_was_asked():
    columns, far = columns_of(56), 0
    for seed in range(30):
        ours, theirs = held(columns, hold_out(columns, 0.1, seed, ALL)), hashed(columns, 0.1, seed)
        near = 5.6 * 0.75 <= len(theirs) <= 5.6 * 1.25
        assert len(ours) == (len(theirs) if near else 6)
        assert ours <= theirs or theirs <= ours  # no more are moved than must be
        far += not near
    assert 5 < far < 25
    for count in range(6, 60):
        columns = columns_of(count, families=count // 6)
        splits = hold_out(columns, 0.1, 0, ALL)
        assert abs(splits.count("validation") - 0.1 * count) <= max(0.5, 0.025 * count), count
        other = in_other_order(columns)
        assert held(other, hold_out(other, 0.1, 0, ALL)) == held(columns, splits)
    large = columns_of(4000)
    assert held(large, hold_out(large, 0.1, 0, ALL)) == hashed(large, 0.1, 0)


def test_a_group_too_large_for_the_share_is_for_training():
    columns = columns_of(60) | {"group": ["g"] * 30 + [""] * 30}
    for seed in range(10):
        splits = hold_out(columns, 0.1, seed, ALL)
        assert set(splits[:30]) == {"train"} and 5 <= splits.count("validation") <= 7


def rows_of(columns: dict[str, list[str]], splits: list[str], name: str) -> set[str]:
    return {identity for identity, split in zip(columns["id"], splits, strict=True) if split == name}


@pytest.mark.parametrize(("count", "families"), [(4000, 500), (56, 8), (20, 2)])
def test_a_test_split_takes_from_training_alone(count, families):
    columns = columns_of(count, families=families)
    for seed in range(5):
        plain, splits = (hold_out(columns, 0.1, seed, ALL, test) for test in (0.0, 0.2))
        assert plain == hold_out(columns, 0.1, seed, ALL) and set(plain) == {"train", "validation"}
        assert held(columns, plain) == held(columns, splits)
        assert abs(splits.count("test") - 0.2 * count) <= max(0.5, 0.05 * count)
        for first in range(0, 3 * families, 3):
            assert len(set(splits[first : first + 3])) == 1
        other = in_other_order(columns)
        assert rows_of(other, hold_out(other, 0.1, seed, ALL, 0.2), "test") == rows_of(columns, splits, "test")
    assert rows_of(columns, hold_out(columns, 0.0, 0, ALL, 0.2), "test") == rows_of(
        columns, hold_out(columns, 0.1, 0, ALL, 0.2), "test"
    )


def test_validation_and_test_share_no_row_however_much_is_asked():
    """The two ends of the hashes meet: what validation has, test leaves."""
    for seed in range(20):
        columns = columns_of(30, families=4)
        splits = hold_out(columns, 0.5, seed, ALL, 0.45)
        assert 12 <= splits.count("validation") <= 18 and 9 <= splits.count("test") <= 18
        assert splits.count("validation") == hold_out(columns, 0.5, seed, ALL).count("validation")


def test_more_products_leave_the_test_split_where_it_was():
    fewer, more = columns_of(1000), columns_of(4000)
    of_more = rows_of(more, hold_out(more, 0.1, 0, ALL, 0.1), "test")
    assert rows_of(fewer, hold_out(fewer, 0.1, 0, ALL, 0.1), "test") == {i for i in of_more if int(i) < 1000}
    top = {i for i in more["id"] if int(hashlib.sha256(f"0 {i}".encode()).hexdigest()[:16], 16) >= 0.9 * 2**64}
    assert of_more == top  # the hash is part of what stores and docs promise


def test_a_test_split_far_from_what_was_asked_is_warned_of():
    columns = columns_of(200) | {"split": ["validation"] * 20 + ["test"] * 40 + ["train"] * 140}
    (warning,) = split_warnings(columns, 0.1, ALL, 0.1)
    assert warning.startswith("40 of 200 products are held out (20.0%) where --test asked for 10.0%")
    assert split_warnings(columns, 0.1, ALL, 0.2) == []


def test_only_what_is_named_binds():
    columns = columns_of(3000, families=1000)
    alone = hold_out(columns, 0.5, 0, ("group", "photo"))
    assert any(len(set(alone[first : first + 3])) == 2 for first in range(0, 3000, 3))


def test_names():
    assert parse_split_by("group,title,photo") == ALL and parse_split_by("none") == ()
    assert parse_split_by(" title") == ("title",)
    for text in ("", "colour", "title,none"):
        with pytest.raises(InputError, match=r"--split-by .* is unknown; write none, or some of group,title,photo"):
            parse_split_by(text)


@pytest.mark.parametrize(
    ("group", "split", "found"),
    [
        ([""] * 200, ["validation"] * 20 + ["train"] * 180, []),
        (["g"] * 3 + [""] * 197, ["validation"] * 20 + ["train"] * 180, []),
        (
            ["g"] * 21 + [""] * 179,
            ["validation"] * 20 + ["train"] * 180,
            ["21 of 200 products count as one"],
        ),
        (
            [""] * 200,
            ["validation"] * 40 + ["train"] * 160,
            ["40 of 200 products are held out (20.0%)"],
        ),
        ([""] * 200, ["train"] * 200, ["0 of 200 products are held out (0.0%)"]),
    ],
)
def test_warnings(group, split, found):
    columns = columns_of(200) | {"group": group, "split": split}
    warnings = split_warnings(columns, 0.1, ALL)
    assert len(warnings) == len(found) and all(w.startswith(f) for w, f in zip(warnings, found, strict=True))
