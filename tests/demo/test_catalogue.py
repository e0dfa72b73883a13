"""The drawn catalogue: reproducible, in the Kaggle layout, large enough to rank in, and honest in its titles."""

import csv
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from fashionbert_fast.demo.garments import asking, catalogue
from fashionbert_fast.demo.garments.catalogue import KINDS, MAX_TITLE_WORDS, garments, photograph, write_catalogue
from fashionbert_fast.demo.garments.wording import AFTER, BEFORE, COLOUR_WORDS, PATTERN_WORDS
from fashionbert_fast.errors import InputError

CANDIDATES = 101  # of the evaluation protocol: a product's own photo among 100 others of its sub-category


def pixels(garment, seed=0):
    return np.asarray(photograph(garment, seed))


def test_a_seed_gives_the_same_catalogue_and_another_seed_another():
    first, again, other = garments(1300, 3), garments(1300, 3), garments(1300, 4)
    assert first == again
    assert np.mean([a.title == b.title for a, b in zip(first, other, strict=True)]) < 0.01
    assert np.array_equal(pixels(first[7]), pixels(again[7]))
    assert not np.array_equal(pixels(first[7], seed=0), pixels(first[7], seed=1)), "pose and light follow the seed"


def test_each_subcategory_holds_out_enough_to_rank_among():
    counts = Counter((g.subcategory, g.row["split"]) for g in garments(3648, 0))
    assert len(KINDS) >= 12
    assert len({kind.category for kind in KINDS.values()}) >= 3
    for name in KINDS:
        assert counts[name, "validation"] >= CANDIDATES
        assert counts[name, "train"] > counts[name, "validation"]


def test_too_few_products_are_refused_with_the_number_that_would_do():
    with pytest.raises(InputError, match="1260 or more"):
        garments(600, 0)


def test_titles_are_varied_and_of_a_shop_s_length():
    titles = [g.title for g in garments(3648, 0)]
    lengths = [len(title.split()) for title in titles]
    assert len(set(titles)) > 0.97 * len(titles)
    assert np.mean([5 <= length <= MAX_TITLE_WORDS for length in lengths]) > 0.97
    assert max(lengths) <= MAX_TITLE_WORDS + 3


def test_titles_name_what_is_visible():
    for garment in garments(1300, 1):
        title, look = garment.title.lower(), garment.look
        named = [COLOUR_WORDS.get(c, (c,)) for c in (look.base, look.second) if c]
        if look.pattern != "plain":
            named.append(sum(PATTERN_WORDS[look.pattern], ()))
        for attribute, value in look.details.items():
            if attribute == "sleeve" and look.details.get("neck") == "straps":
                continue
            for table in (BEFORE, AFTER):
                options = table.get(attribute, {}).get(value, ())
                named += [options] if options and "" not in options else []
        for options in named:
            assert any(option.lower() in title for option in options), (garment.title, options)


def test_the_base_colour_is_on_the_photo():
    """The middle of a plain photo is nearer to its own colour's median than to most others'."""
    plain = [g for g in garments(3648, 0) if g.look.pattern == "plain" and g.subcategory in ("T-shirts", "Dresses")]
    red = [pixels(g)[90:140, 90:134].mean((0, 1)) for g in plain if g.look.base == "red"]
    blue = [pixels(g)[90:140, 90:134].mean((0, 1)) for g in plain if g.look.base == "blue"]
    assert red and blue
    assert all(r > b + 40 for r, _, b in red)
    assert all(b > r + 40 for r, _, b in blue)


def test_every_value_of_every_attribute_can_be_drawn():
    seen = set()
    for garment in garments(1400, 5):
        seen.update((garment.subcategory, *item) for item in garment.look.details.items())
    wanted = {(name, a, v) for name, kind in KINDS.items() for a, values in kind.attributes.items() for v in values}
    assert wanted <= seen
    for garment in garments(1400, 5)[::9]:
        assert pixels(garment).std() > 8, "an empty photo"


def test_write_catalogue_writes_the_kaggle_layout(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "VALIDATION_PER_SUBCATEGORY", 2)
    out = write_catalogue(tmp_path / "shop", products=50, seed=2)
    with (out / "styles.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == catalogue.COLUMNS
    assert len(rows) == 50 == len({row["id"] for row in rows})
    assert Counter(row["split"] for row in rows) == {"validation": 24, "train": 26}
    for row in rows:
        with Image.open(out / "images" / f"{row['id']}.jpg") as photo:
            assert photo.size == (224, 224) and photo.mode == "RGB"
    again = write_catalogue(tmp_path / "again", products=50, seed=2)
    for path in sorted(out.rglob("*.*")):
        assert path.read_bytes() == (again / path.relative_to(out)).read_bytes()


def test_an_unwritable_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write the demo catalogue"):
        write_catalogue(tmp_path / "file" / "shop", products=1300)


def test_shoppers_ask_for_what_can_be_seen_in_other_words_than_titles():
    listed = garments(1300, 0)
    found, by_id = {}, {garment.id: garment for garment in listed}
    for query, identity in asking.queries(listed, 0):
        found.setdefault(query, []).append(by_id[identity])
    assert list(asking.queries(listed, 0)) == list(asking.queries(listed, 0)) != list(asking.queries(listed, 1))
    assert {g.id for garments in found.values() for g in garments} == set(by_id)  # one begins at each
    several = [g for g in found.values() if len({garment.row["split"] for garment in g}) == 1 and len(g) > 1]
    assert len(several) > 300
    for query, garments_ in found.items():
        assert len({garment.subcategory for garment in garments_}) == 1 and len(query.split()) <= 12
        colours = {name for name, words in asking.COLOURS.items() if any(f" {word} " in f" {query} " for word in words)}
        if len(colours) == 1:  # no word of it is one of another's
            assert {garment.look.base for garment in garments_} == colours
    words = [set(query.split()) for query in found]
    titles = {word for garment in listed for word in garment.title.lower().split()}
    assert np.mean([bool(one - titles) for one in words]) > 0.8  # something in it that no title says


def test_queries_lie_beside_a_catalogue_that_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "_jpeg", lambda garment, seed: b"")
    with_queries, without = (write_catalogue(tmp_path / str(q), products=1300, queries=q) for q in (True, False))
    assert (with_queries / "styles.csv").read_bytes() == (without / "styles.csv").read_bytes()
    assert not (without / "queries.csv").exists()
    with (with_queries / "queries.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["query", "id"] and [tuple(row) for row in rows[1:]] == list(asking.queries(garments(1300, 0), 0))
