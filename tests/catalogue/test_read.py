"""Readers: what each format gives, and what messy sources are told."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fashionbert_fast.catalogue.product import Problems
from fashionbert_fast.catalogue.read import read_catalogue
from fashionbert_fast.errors import InputError

HEADER = "id,gender,masterCategory,subCategory,productDisplayName"


def touch_images(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"a photo")


def kaggle(tmp_path: Path, *rows: str | bytes, header: str = HEADER, images: int = 6) -> Path:
    touch_images(tmp_path / "images", *[f"{i}.jpg" for i in range(1, images + 1)])
    lines = [row if isinstance(row, bytes) else row.encode() for row in (header, *rows)]
    (tmp_path / "styles.csv").write_bytes(b"\n".join(lines) + b"\n")
    return tmp_path


def read(source: Path, **options):
    problems = Problems()
    return read_catalogue(source, problems=problems, **options), problems


def test_kaggle_layout(tmp_path):
    source = kaggle(tmp_path, '2,Men,Apparel,Topwear,"Blue, long  shirt"', "1,Women,Footwear,Shoes,Red sneaker")
    products, problems = read(source)
    assert [p.id for p in products] == ["2", "1"]  # the source's order
    assert products[0].title == "Blue, long shirt"
    assert (products[0].category, products[0].subcategory, products[0].split) == ("Apparel", "Topwear", "")
    assert products[0].image == tmp_path / "images" / "2.jpg"
    assert problems.count == 0


def test_messy_rows_are_named_and_the_rest_goes_on(tmp_path):
    source = kaggle(
        tmp_path,
        "1,Men,Apparel,Topwear,Blue shirt",
        "2,Men,Apparel,Topwear,Blue shirt, long, warm",  # an unquoted comma, as in Kaggle's own file
        "3,Men,Apparel",
        "1,Men,Apparel,Topwear,Again",
        "4,Men,Apparel,Topwear,   ",
        "99,Men,Apparel,Topwear,No photo",
        ",Men,Apparel,Topwear,No id",
        b"5,Men,Apparel,Topwear,Caf\xe9 shirt",
        "",
        "6,Men,Apparel,Topwear,Green shirt",
    )
    products, problems = read(source)
    assert [p.id for p in products] == ["1", "6"]
    found = [(problem.row, problem.kind, problem.id) for problem in problems.items]
    assert found == [
        (3, "bad row", "2"),
        (4, "bad row", "3"),
        (5, "duplicate id", "1"),
        (6, "empty title", "4"),
        (7, "missing image", "99"),
        (8, "missing id", ""),
        (9, "not UTF-8", ""),
    ]
    assert "7 fields where the header has 5" in problems.items[0].what
    assert "row 2" in problems.items[2].what
    assert problems.by_kind() == {
        "bad row": 2, "duplicate id": 1, "empty title": 1, "missing image": 1, "missing id": 1, "not UTF-8": 1,
    }  # fmt: skip
    lines = [json.loads(line) for line in problems.to_jsonl().splitlines()]
    assert len(lines) == 7 and lines[0]["file"].endswith("styles.csv") and lines[0]["row"] == 3


def test_the_first_usable_row_of_an_id_counts_and_later_ones_are_spares(tmp_path):
    rows = [
        "1,A,B,C,",
        "1,A,B,C,Cap",
        "2,A,B,C,Tee,surplus",
        "2,A,B,C,Tee",
        "99,A,B,C,Hat",
        "1,A,B,C,Hat",
        "1,A,B,C,  ",
    ]
    products, problems = read(kaggle(tmp_path, *rows))
    assert [(p.id, p.title, p.row) for p in products] == [("1", "Cap", 3), ("2", "Tee", 5)]
    assert [(spare.title, spare.row) for spare in products[0].spares] == [("Hat", 7)] and products[1].spares == ()
    found = [(problem.row, problem.kind) for problem in problems.items]
    assert found == [(2, "empty title"), (4, "bad row"), (6, "missing image"), (7, "duplicate id"), (8, "empty title")]
    assert "already used in row 3" in problems.items[3].what


def test_a_group_column(tmp_path):
    source = kaggle(tmp_path, "1,A,B,C,Tee,7", "2,A,B,C,Hat,", header=HEADER + ",productID")
    assert [p.group for p in read(source)[0]] == ["", ""]
    assert [p.group for p in read(source, columns={"group": "productID"})[0]] == ["7", ""]


def test_a_quoted_field_over_lines_keeps_row_numbers_right(tmp_path):
    source = kaggle(tmp_path, '1,Men,Apparel,Topwear,"Blue\nshirt"', "2,Men", "3,Men,Apparel,Topwear,Tee")
    products, problems = read(source)
    assert [p.title for p in products] == ["Blue shirt", "Tee"]
    assert [problem.row for problem in problems.items] == [4]


def test_strict_stops_at_the_first(tmp_path):
    source = kaggle(tmp_path, "1,Men,Apparel,Topwear,Blue shirt", "2,Men", "77,Men,Apparel,Topwear,Tee")
    with pytest.raises(InputError, match=r"styles\.csv: row 3 \(id 2\): 2 fields .*--strict"):
        read_catalogue(source, problems=Problems(strict=True))


def test_split_column(tmp_path):
    rows = ["1,A,B,C,Tee,train", "2,A,B,C,Tee,Val", "3,A,B,C,Tee,holdout", "4,A,B,C,Tee,"]
    source = kaggle(tmp_path, *rows, header=HEADER + ",split")
    products, problems = read(source)
    assert [p.split for p in products] == ["train", "validation", ""]
    assert problems.by_kind() == {"unknown split": 1} and "--column split=" in problems.items[0].what
    products, problems = read(source, columns={"split": ""})
    assert [p.split for p in products] == [""] * 4 and problems.count == 0


def test_byte_order_mark(tmp_path):
    kaggle(tmp_path, "1,Men,Apparel,Topwear,Crème shirt")
    (tmp_path / "styles.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "styles.csv").read_bytes())
    assert read(tmp_path)[0][0].title == "Crème shirt"


@pytest.mark.parametrize(
    ("name", "text", "encoding", "options"),
    [
        ("shop.csv", "id;title\n1;Crème, weiß\n", "utf-8", {}),
        ("shop.csv", "id;title\r\n1;Crème, weiß\r\n", "utf-8-sig", {}),  # as spreadsheets write CSV
        ("shop.csv", "id\ttitle\n1\tCrème, weiß\n", "utf-16", {}),  # as they write Unicode text
        ("shop.csv", 'id|title\n1|"Crème, weiß"\n', "utf-8", {}),
        ("shop.tsv", "id\ttitle\tprice, EUR\n1\tCrème, weiß\t3\n", "utf-8", {}),
        ("shop.csv", "id;title;price, EUR\n1;Crème, weiß;3\n", "utf-8", {"delimiter": ";"}),
        ("shop.csv", "id,a\ttitle\n1,a\tCrème, weiß\n", "utf-8", {"delimiter": "tab", "columns": {"id": "id,a"}}),
        ("shop.csv", "id~title\n1~Crème, weiß\n", "utf-8", {"delimiter": "~"}),
        ("shop.csv", "id;title\n1;Crème, weiß\n", "cp1252", {"encoding": "cp1252"}),
        ("shop.csv", "id;title\n1;Crème, weiß\n", "utf-16-be", {"encoding": "utf-16-be"}),
        ("shop.jsonl", '{"id": "1", "title": "Crème, weiß"}\n', "latin-1", {"encoding": "latin-1"}),
        ("shop.jsonl", '{"id": "1", "title": "Crème, weiß"}\n', "utf-8-sig", {"encoding": "UTF8"}),
    ],
)
def test_delimiters_and_encodings(tmp_path, name, text, encoding, options):
    touch_images(tmp_path / "images", "1.jpg", "1,a.jpg")
    (tmp_path / name).write_bytes(text.encode(encoding))
    products, problems = read(tmp_path / name, **options)
    assert [p.title for p in products] == ["Crème, weiß"] and problems.count == 0


def test_rows_that_are_not_in_the_encoding_given(tmp_path):
    touch_images(tmp_path / "images", "1.jpg", "2.jpg")
    (tmp_path / "shop.csv").write_bytes(b"id;title\n1;Hat\n2;C\x81p\n3;Hat;4\n")
    products, problems = read(tmp_path / "shop.csv", encoding="cp1252")
    assert [p.title for p in products] == ["Hat"]
    assert [(p.row, p.kind) for p in problems.items] == [(3, "not cp1252"), (4, "bad row")]
    assert "bytes that are not cp1252" in problems.items[0].what and "unquoted semicolon" in problems.items[1].what


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("shop.csv", {"delimiter": ";;"}, "--delimiter ';;': must be one character, or tab"),
        ("shop.csv", {"delimiter": '"'}, "--delimiter '\"': must be one character, or tab"),
        ("shop.csv", {"encoding": "klingon"}, "--encoding klingon: no such encoding; give utf-8, cp1252"),
        ("shop.csv", {"encoding": "base64"}, "--encoding base64: no such encoding"),
        ("shop.jsonl", {"delimiter": ";"}, "--delimiter ';': .*shop.jsonl has none, being .jsonl; leave it out"),
        ("shop.parquet", {"encoding": "cp1252"}, "--encoding 'cp1252': .*shop.parquet has none, being .parquet"),
    ],
)
def test_delimiters_and_encodings_that_cannot_be(tmp_path, name, options, message):
    touch_images(tmp_path / "a", "one.png", "two.png")
    with pytest.raises(InputError, match=message):
        read(write_table(tmp_path / name), **options)


ROWS = [
    {"sku": 1, "name": "Red shoe", "kind": "Footwear", "file": "a/one.png"},
    {"sku": 2, "name": None, "kind": "Footwear", "file": "a/two.png"},
    {"sku": 3, "name": "Blue shoe", "kind": None, "file": "a/two.png"},
]


def write_table(path: Path) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        path.write_text(
            "sku,name,kind,file\n" + "".join(",".join(str(v or "") for v in r.values()) + "\n" for r in ROWS)
        )
    return path


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_formats_with_named_columns(tmp_path, suffix):
    touch_images(tmp_path / "photos" / "a", "one.png", "two.png")
    source = write_table(tmp_path / f"shop.{suffix}")
    columns = {"id": "sku", "title": "name", "category": "kind", "image": "file"}
    products, problems = read(source, images=tmp_path / "photos", columns=columns)
    assert [(p.id, p.title, p.category, p.subcategory) for p in products] == [
        ("1", "Red shoe", "Footwear", "Footwear"),  # without a column of sub-categories the category serves
        ("3", "Blue shoe", "", ""),
    ]
    assert products[0].image == tmp_path / "photos" / "a" / "one.png"
    assert problems.by_kind() == {"empty title": 1}


def test_photos_by_id_in_the_image_folder_of_any_suffix(tmp_path):
    touch_images(tmp_path / "images", "x.png", "y.JPG")
    (tmp_path / "shop.csv").write_text("id,title\nx,Hat\ny,Cap\nz,Scarf\n")
    products, problems = read(tmp_path / "shop.csv")
    assert [p.image.name for p in products] == ["x.png", "y.JPG"]
    assert problems.by_kind() == {"missing image": 1}


def test_jsonl_lines_that_are_no_objects(tmp_path):
    touch_images(tmp_path / "images", "1.jpg")
    (tmp_path / "shop.jsonl").write_bytes(b'{"id": 1, "title": "Hat"}\n[1]\n{"id": 2\n\n{"id": 3, "title": "\xe9"}\n')
    products, problems = read(tmp_path / "shop.jsonl")
    assert [p.id for p in products] == ["1"]
    assert [(p.row, p.kind) for p in problems.items] == [(2, "bad row"), (3, "bad row"), (5, "not UTF-8")]


def test_embedded_image_bytes_are_refused(tmp_path):
    pq.write_table(pa.table({"id": ["1"], "title": ["Hat"], "image": [b"\xff\xd8"]}), tmp_path / "shop.parquet")
    with pytest.raises(InputError, match="holds the images themselves, which is not supported yet"):
        read(tmp_path / "shop.parquet")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent", None, "no such file or directory; give a catalogue"),
        ("shop.h5", b"", "Fashion-Gen HDF5 is not supported yet; convert it to a directory with styles.csv"),
        ("shop.tar", b"", "WebDataset is not supported yet"),
        ("shop.xlsx", b"", "unknown kind of catalogue '.xlsx'"),
        ("shop.parquet", b"no", "is not a Parquet file"),
        ("shop.csv", b"", "no column id for id, it has none"),
        ("shop.csv", b"id,title\n", r"no product can be used \(it is empty\)"),
        ("shop.csv", b"id,title\n1,Hat\n", r"no product can be used \(missing image 1\); the first: .* row 2 \(id 1\)"),
        ("shop.csv", b"id,label\n1,Hat\n", "no column title or productDisplayName .* --column title=COLUMN"),
        ("shop.csv", "id,title\n1,Hat\n".encode("utf-16-le"), "is not UTF-8 text; give its --encoding, say utf-16-le"),
        ("shop.csv", "id,title\n1,Hat\n".encode("utf-16")[:-1], "bytes that are not UTF-8 .*--encoding"),
        ("shop.csv", b"id,t\xe9tle\n", "row 1: bytes that are not UTF-8 .give the file's --encoding, say cp1252"),
        ("shop.csv", b"id~title\n1~Hat\n", "no column id for id, it has id~title; .*, or give the --delimiter"),
        ("shop.csv", b"id;title;price, EUR\n", "it has id;title;price, EUR; .*, or give the --delimiter"),
    ],
)
def test_unusable_sources(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(raised.value) and "\n" not in str(raised.value)


def test_directories_that_are_no_catalogue(tmp_path):
    with pytest.raises(InputError, match=r"has no styles\.csv"):
        read(tmp_path)
    (tmp_path / "000.tar").write_bytes(b"")
    with pytest.raises(InputError, match="WebDataset is not supported yet"):
        read(tmp_path)


def test_unknown_field_column_and_folder(tmp_path):
    source = kaggle(tmp_path, "1,Men,Apparel,Topwear,Tee")
    with pytest.raises(InputError, match=r"--column colour=.*no such field; choose from id, title"):
        read(source, columns={"colour": "x"})
    with pytest.raises(InputError, match="no column articleType for category"):
        read(source, columns={"category": "articleType"})
    with pytest.raises(InputError, match="no such image folder"):
        read(source, images=tmp_path / "nowhere")


# What a stranger's catalogue may name ---------------------------------------------------------------------------------
@pytest.fixture
def beside_secrets(tmp_path) -> Path:
    """A shop's folder with a photo, beside one whose photos are nobody's business."""
    touch_images(tmp_path / "private", "x.jpg")
    touch_images(tmp_path / "shop" / "images", "1.jpg")
    (tmp_path / "shop" / "images" / "link.jpg").symlink_to(tmp_path / "private" / "x.jpg")
    (tmp_path / "shop" / "images" / "inside.jpg").symlink_to(tmp_path / "shop" / "images" / "1.jpg")
    (tmp_path / "shop" / "away").symlink_to(tmp_path / "private")
    return tmp_path


@pytest.mark.parametrize("image", ["../private/x.jpg", "images/../../private/x.jpg", "ABSOLUTE/private/x.jpg",
                                   "images/link.jpg", "away/x.jpg"])  # fmt: skip
def test_photos_outside_of_the_folder_are_refused_by_row(beside_secrets, image):
    shop = beside_secrets / "shop"
    image = image.replace("ABSOLUTE", str(beside_secrets))
    (shop / "shop.csv").write_text(f"id,title,image\n1,red shirt,images/1.jpg\n2,blue shirt,{image}\n")
    products, problems = read(shop / "shop.csv")
    assert [product.id for product in products] == ["1"]
    (problem,) = problems.items
    assert (problem.row, problem.kind) == (3, "image outside")
    assert "--allow-root" in problem.what


def test_links_within_the_folder_and_allowed_roots_are_followed(beside_secrets):
    shop = beside_secrets / "shop"
    (shop / "shop.csv").write_text(
        "id,title,image\n1,red shirt,images/inside.jpg\n"
        f"2,blue shirt,{beside_secrets}/private/x.jpg\n3,a hat,away/x.jpg\n"
    )
    products, problems = read(shop / "shop.csv", roots=[beside_secrets / "private"])
    assert [product.id for product in products] == ["1", "2", "3"]
    assert problems.count == 0


@pytest.mark.parametrize("identity", ["../../private/x", "/etc/passwd", "..", "sub/1"])
def test_ids_are_no_paths(beside_secrets, identity):
    shop = beside_secrets / "shop"
    (shop / "shop.csv").write_text(f"id,title\n1,red shirt\n{identity},blue shirt\n")
    products, problems = read(shop / "shop.csv")
    assert [product.id for product in products] == ["1"]
    assert [problem.kind for problem in problems.items] == ["image outside"]


@pytest.mark.parametrize("image", ["x" * 300 + ".jpg", "images/" * 1000 + "1.jpg", "a\\u0000b.jpg"])
def test_paths_that_no_file_can_have_cost_one_row(beside_secrets, image):
    shop = beside_secrets / "shop"
    rows = ['{"id": 1, "title": "red shirt"}', f'{{"id": 2, "title": "blue shirt", "image": "{image}"}}']
    (shop / "shop.jsonl").write_text("\n".join(rows))
    products, problems = read(shop / "shop.jsonl")
    assert [product.id for product in products] == ["1"]
    assert [problem.kind for problem in problems.items] == ["missing image"]


def test_a_loop_of_links_costs_one_row(beside_secrets):
    images = beside_secrets / "shop" / "images"
    (images / "2.jpg").symlink_to(images / "2.jpg")
    (beside_secrets / "shop" / "shop.csv").write_text("id,title\n1,red shirt\n2,blue shirt\n")
    products, problems = read(beside_secrets / "shop" / "shop.csv")
    assert [product.id for product in products] == ["1"]
    assert problems.count == 1


def test_a_root_that_is_not_there(beside_secrets):
    (beside_secrets / "shop" / "shop.csv").write_text("id,title\n1,red shirt\n")
    with pytest.raises(InputError, match="nowhere: no such folder; give --allow-root"):
        read(beside_secrets / "shop" / "shop.csv", roots=[beside_secrets / "nowhere"])


HOSTILE_ROWS = {
    "half of a character in the title": ('{"id": 2, "title": "blue \\ud800 shirt"}', "lone surrogate"),
    "half of a character in the id": ('{"id": "\\udfff", "title": "blue shirt"}', "lone surrogate"),
    "deep nesting": ('{"id": 2, "title": ' + "[" * 200_000 + "]" * 200_000 + "}", "is not JSON"),
    "a number of 10,000 digits": ('{"id": 2, "title": ' + "9" * 10_000 + "}", "is not JSON"),
    "nothing but control characters": ('{"id": 2, "title": "\\u0000\\u001b\\u009b"}', "no title"),
}


@pytest.mark.parametrize("kind", HOSTILE_ROWS)
def test_a_hostile_row_costs_itself_alone(beside_secrets, kind):
    row, said = HOSTILE_ROWS[kind]
    shop = beside_secrets / "shop"
    (shop / "shop.jsonl").write_text(f'{{"id": 1, "title": "red shirt"}}\n{row}\n')
    products, problems = read(shop / "shop.jsonl")
    assert [product.id for product in products] == ["1"]
    (problem,) = problems.items
    assert problem.row == 2
    assert said in problem.what
    assert problems.to_jsonl()


def test_a_terminal_is_told_nothing_by_a_title(beside_secrets):
    shop = beside_secrets / "shop"
    (shop / "shop.jsonl").write_text(
        '{"id": 1, "title": "red \\u001b[2J\\u001b]0;owned\\u0007 caf\u00e9 \\u200d shirt"}\n'
    )
    (product,), _ = read(shop / "shop.jsonl")
    assert product.title == "red [2J ]0;owned caf\u00e9 \u200d shirt"
