"""Tables of strangers: a row's loss with its count, or a line; in no more memory than a row may take.

Peaks of memory and seconds are measured by `tests/reliability/hostile.py`; here it is what is said.
"""

from __future__ import annotations

import json
from pathlib import Path

import no_files
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fashionbert_fast.catalogue import parquet, product, tables
from fashionbert_fast.catalogue.product import Problems
from fashionbert_fast.catalogue.read import read_catalogue
from fashionbert_fast.errors import InputError

GOOD = [{"id": "1", "title": "Hat"}, {"id": "2", "title": "Cap"}]


@pytest.fixture
def shop(tmp_path) -> Path:
    (tmp_path / "images").mkdir()
    for row in GOOD:
        (tmp_path / "images" / f"{row['id']}.jpg").touch()
    return tmp_path


def _read(path: Path) -> tuple[list[str], dict[str, int]]:
    problems = Problems()
    products = read_catalogue(path, problems=problems)
    return [product.title for product in products], problems.by_kind()


LONG, CELL = "x" * (tables.MOST_ROW + 100), "x" * (tables.MOST_CELL + 1)
ROWS = {  # kind of file -> what stands between two good rows, each one bad row
    "a cell too long": {"csv": f"3,{CELL}\n", "jsonl": json.dumps({"id": 3, "title": LONG[:200_000]})},
    "a row too long": {"csv": f"3,{LONG}\n", "jsonl": json.dumps({"id": "3", "title": LONG})},
    "a row of nothing but commas": {"csv": "," * (tables.MOST_ROW + 5) + "\n", "jsonl": "[" * 5_000_000},
    "more fields than there is a header for": {"csv": "," * 100_000 + "\n", "jsonl": "[" + "1," * 100_000 + "1]"},
    "a number of 5,000 digits": {"csv": "3\n", "jsonl": '{"id": ' + "1" * 5000 + ', "title": "a"}'},
    "nested": {"csv": "3\n", "jsonl": '{"id": "3", "title": ' + "[" * 900 + "]" * 900 + "}"},
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize("kind", ROWS)
def test_a_hostile_row_costs_itself_alone(shop, kind, suffix):
    first, last = ("id,title\n1,Hat\n", "2,Cap\n") if suffix == "csv" else (json.dumps(row) + "\n" for row in GOOD)
    path = shop / f"shop.{suffix}"
    path.write_text(first + ROWS[kind][suffix].rstrip("\n") + "\n" + last)
    titles, kinds = _read(path)
    assert titles == ["Hat", "Cap"] and sum(kinds.values()) == 1
    assert set(kinds) <= {"bad row", "missing image"}


def test_a_quote_that_never_ends_is_given_up_where_a_row_must_end(shop):
    """A field over lines could go on for the whole file, and so could a row of such fields."""
    lines = '3,"a\n' + '","b\n' * (tables.MOST_ROW // 5) + '"\n'
    (shop / "shop.csv").write_text("id,title\n1,Hat\n" + lines + "2,Cap\n")
    titles, kinds = _read(shop / "shop.csv")
    assert titles == ["Hat"] and set(kinds) == {"bad row"} and sum(kinds.values()) > 1


def test_bad_rows_beyond_what_is_listed_are_counted(shop, monkeypatch):
    monkeypatch.setattr(product, "MOST_LISTED", 10)
    (shop / "shop.csv").write_text("id,title\n1,Hat\n" + "3\n" * 100)
    problems = Problems()
    read_catalogue(shop / "shop.csv", problems=problems)
    assert (problems.count, problems.by_kind(), len(problems.items)) == (100, {"bad row": 100}, 10)
    assert json.loads(problems.to_jsonl().splitlines()[-1])["what"] == "90 more are counted and not listed"


def test_what_is_said_of_a_row_is_short(shop):
    (shop / "shop.jsonl").write_text(json.dumps({"id": "x" * 100_000, "title": "a"}) + "\n" + json.dumps(GOOD[0]))
    problems = Problems()
    read_catalogue(shop / "shop.jsonl", problems=problems)
    assert len(str(problems.items[0])) < 1200


def test_columns_without_end(shop):
    (shop / "shop.jsonl").write_text("".join(json.dumps({f"{i}-{j}": 1 for j in range(200)}) + "\n" for i in range(60)))
    with pytest.raises(InputError, match=r"shop\.jsonl: has more than 10,000 columns"):
        _read(shop / "shop.jsonl")
    (shop / "shop.csv").write_text(",".join(map(str, range(5_000))) + "\n")
    with pytest.raises(InputError, match="no column id") as raised:
        _read(shop / "shop.csv")
    assert len(str(raised.value)) < 800


def _write(path: Path, titles, ids=None, **options) -> Path:
    ids = [str(i) for i in range(len(titles))] if ids is None else ids
    pq.write_table(pa.table({"id": ids, "title": titles}), path, store_schema=False, **options)
    return path


def test_a_text_that_all_rows_share_is_made_once_a_row(shop):
    """A text of 1,000,000 characters and 3,000 rows: 3 GB, if all were made at once."""
    for length, kinds in ((10_000, {"missing image": 2_998}), (1_000_000, {"bad row": 3_000})):
        titles = pa.DictionaryArray.from_arrays(pa.array([0] * 3_000, pa.int32()), ["x" * length])
        path = _write(shop / "shop.parquet", titles)
        assert path.stat().st_size < 200_000
        problems = Problems()
        try:
            assert len(read_catalogue(path, problems=problems)) == 2
        except InputError:
            assert length > tables.MOST_CELL
        assert problems.by_kind() == kinds


def test_a_page_that_expands_is_given_up(shop):
    """450 MB of blanks in less than a megabyte."""
    titles = pa.array([" " * 2**20], pa.string()).take(pa.array([0] * 450))
    path = _write(shop / "shop.parquet", titles, compression="zstd", use_dictionary=False, data_page_size=2**30)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(InputError, match=r"cannot be read \(takes more than 384 MB to read: write smaller"):
        _read(path)


def test_a_file_whose_rows_nobody_reads_leaves_no_process(shop):
    table = parquet.Table(_write(shop / "shop.parquet", ["Hat"]))
    process = table.process
    assert process.poll() is None
    del table
    assert process.wait(10) != 0


def test_a_store_does_not_expand_either(shop):
    titles = pa.array([" " * 2**20], pa.string()).take(pa.array([0] * 100))
    path = _write(shop / "products.parquet", titles, compression="zstd", use_dictionary=False)
    with pytest.raises(pa.ArrowException, match=r"^100 rows of 104,\d+,\d+ bytes in [\d,]+ bytes$"):
        parquet.open_index(path)
    with pytest.raises(pa.ArrowException, match=r"^1,000,000 rows of [\d,]+ bytes in [\d,]+ bytes$"):
        parquet.open_index(_write(shop / "products.parquet", ["a"] * 10**6, ["1"] * 10**6))


def test_columns_of_no_text(shop):
    for column in ([["a"], ["b"]], [{"a": 1}, {"a": 2}], [b"a", b"b"]):
        pq.write_table(pa.table({"id": ["1", "2"], "title": column}), shop / "shop.parquet")
        with pytest.raises(InputError, match=r"column title is of .*; where it holds the images themselves"):
            _read(shop / "shop.parquet")


def test_a_damaged_file_is_a_line_or_read(shop):
    """At some flipped bits of the metadata pyarrow aborts the process that it is in."""
    path = _write(shop / "shop.parquet", ["Hat", "Cap"])
    whole = path.read_bytes()
    for place in range(len(whole) - 300, len(whole), 75):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
        try:
            _read(path)
        except InputError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("rows", [2, 50])
def test_an_index_of_flipped_bits_is_an_error_or_read(shop, rows):
    """In this process: what is not told by an exception ends it."""
    path = _write(shop / "products.parquet", [f"Hat {i}" for i in range(rows)])
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
        try:
            with parquet.open_index(path) as index:
                assert parquet.texts(index, "id") is not None
        except (pa.ArrowException, OSError, UnicodeDecodeError):
            pass


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("kind", no_files.KINDS)
def test_sources_that_are_no_files(shop, suffix, kind):
    path = shop / f"shop.{suffix}"
    no_files.make(path, kind)
    with pytest.raises(InputError, match=rf"^{path}: "):
        _read(path)
