"""From a catalogue to a store, through the function and through the command line, with everything that can go wrong."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fashionbert_fast.cli import main
from fashionbert_fast.commands.prepare import parse_columns
from fashionbert_fast.errors import InputError
from fashionbert_fast.features.compare import compare
from fashionbert_fast.features.encoding import ordered
from fashionbert_fast.features.patch_encoder import PatchEncoder, load_encoder
from fashionbert_fast.features.photo import read_image
from fashionbert_fast.features.prepare import prepare
from fashionbert_fast.features.store import FeatureStore, Manifest
from fashionbert_fast.processor import FashionBertProcessor

HEADER = "id,masterCategory,subCategory,productDisplayName"
QUICK = {"encoder": "random", "grid": 2, "patch_pixels": 32, "device": "cpu"}
QUICK_WORDS = ["--encoder", "random", "--grid", "2", "--device", "cpu"]


def write_catalogue(folder: Path, count: int = 9, extra: str = "") -> Path:
    (folder / "images").mkdir(parents=True)
    generator = np.random.default_rng(0)
    lines = [HEADER]
    for i in range(count):
        photo = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((40, 60))
        photo.save(folder / "images" / f"{100 + i}.jpg", quality=95)
        lines.append(f"{100 + i},Apparel,Topwear,Shirt number {i}")
    (folder / "styles.csv").write_text("\n".join(lines) + "\n" + extra)
    return folder


@pytest.fixture
def catalogue(tmp_path) -> Path:
    return write_catalogue(tmp_path / "shop")


@pytest.fixture
def broken(tmp_path) -> Path:
    """Nine products, four of which cannot be used, each in its own way."""
    folder = write_catalogue(tmp_path / "broken", extra="200,Apparel,Topwear,No photo\n201,Apparel\n")
    (folder / "images" / "102.jpg").write_bytes(b"not a photo")
    whole = (folder / "images" / "105.jpg").read_bytes()
    (folder / "images" / "105.jpg").write_bytes(whole[: len(whole) // 2])
    return folder


def test_rows_are_the_features_of_their_own_photos(catalogue, tmp_path):
    report = prepare(catalogue, tmp_path / "s", dtype="float32", **QUICK)
    store = FeatureStore.open(tmp_path / "s")
    assert store.ids == [str(100 + i) for i in range(9)]
    assert (report.products, report.skipped, report.feature_size, report.trained) == (9, 0, 256, False)
    assert report.fingerprint == store.manifest.fingerprint
    encoder = load_encoder("random", grid=2, patch_pixels=32, device="cpu")
    for row in (0, 7):
        photo = torch.from_numpy(read_image(catalogue / "images" / f"{100 + row}.jpg", 64).copy())
        expected = encoder.encode(photo[None])
        assert (store.features([row]) - expected).abs().max() <= 0.02 * expected.abs().max()
    assert Path(store.images[3]) == catalogue / "images" / "103.jpg"


def test_neither_batches_nor_workers_matter(catalogue, tmp_path):
    prepare(catalogue, tmp_path / "a", dtype="float32", batch_size=1, workers=1, **QUICK)
    prepare(catalogue, tmp_path / "b", dtype="float32", batch_size=4, workers=3, **QUICK)
    prepare(catalogue, tmp_path / "c", dtype="float32", batch_size=4, workers=1, **QUICK)
    a, b, c = (FeatureStore.open(tmp_path / name) for name in "abc")
    assert a.ids == b.ids == c.ids
    a_NPD, b_NPD, c_NPD = (store.features(store.rows(None)) for store in (a, b, c))
    assert torch.equal(b_NPD, c_NPD)
    assert (a_NPD - b_NPD).abs().max() <= 0.02 * a_NPD.abs().max()
    assert a.manifest.fingerprint == b.manifest.fingerprint


def test_a_store_of_maps_and_its_processor(catalogue, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    words = ["prepare", str(catalogue), "--out", str(tmp_path / "s"), "--patching", "map", "--dtype", "float32"]
    assert main([*words, *QUICK_WORDS]) == 0
    store = FeatureStore.open(tmp_path / "s")
    assert store.manifest.patching == "map" and store.manifest.resize["image_pixels"] == 16
    photos = [catalogue / "images" / f"{100 + row}.jpg" for row in range(9)]
    encoder = load_encoder("random", grid=2, patching="map", device="cpu")
    expected = encoder.encode(torch.stack([torch.from_numpy(read_image(photo, 16).copy()) for photo in photos]))
    assert (store.features(store.rows()) - expected).abs().max() <= 0.02 * expected.abs().max()
    processor = FashionBertProcessor(None, Manifest.from_dict(store.manifest.to_dict()), device="cpu")
    assert (processor.patch_features(photos) - expected).abs().max() <= 0.02 * expected.abs().max()
    prepare(catalogue, tmp_path / "patches", **QUICK | {"patch_pixels": 8})
    with pytest.raises(InputError, match=r"differ in patching \(map against separate\)"):
        compare(store, FeatureStore.open(tmp_path / "patches"))
    assert main(["inspect", str(tmp_path / "s"), "--verify"]) == 0
    assert "random:0:256 (NOT TRAINED)'s feature map" in capsys.readouterr().out


def test_threads_are_given_back(catalogue, tmp_path):
    before = torch.get_num_threads()
    prepare(catalogue, tmp_path / "s", **QUICK)
    assert torch.get_num_threads() == before


def test_the_untrained_encoder_says_so(catalogue, tmp_path, capsys):
    prepare(catalogue, tmp_path / "s", **QUICK)
    assert "WARNING: encoder random:0:256 IS NOT TRAINED" in capsys.readouterr().err
    assert json.loads((tmp_path / "s" / "manifest.json").read_text())["encoder"]["trained"] is False


def test_bad_rows_and_photos_are_left_out_and_named(broken, tmp_path):
    report = prepare(broken, tmp_path / "s", batch_size=2, **QUICK)
    store = FeatureStore.open(tmp_path / "s")
    assert store.ids == ["100", "101", "103", "104", "106", "107", "108"]
    assert report.problems == {"unreadable image": 2, "missing image": 1, "bad row": 1} == store.manifest.problems
    problems = [json.loads(line) for line in (tmp_path / "s" / "problems.jsonl").read_text().splitlines()]
    assert {problem["id"] for problem in problems} == {"200", "201", "102", "105"}
    assert any("102.jpg cannot be read (it is no JPEG" in p["what"] and p["row"] == 4 for p in problems)
    assert all(p["file"] == str(broken / "styles.csv") for p in problems)


def test_a_second_row_of_an_id_stands_in_for_a_photo_that_cannot_be_read(tmp_path):
    folder = write_catalogue(tmp_path / "shop", count=6)
    for bad in (101, 103):
        (folder / "images" / f"{bad}.jpg").write_bytes(b"not a photo")
    rows = ["a,Hat,100", "b,Cap,101", "b,Cap again,103", "b,Cap at last,104", "b,Cap too many,105", "c,Belt,102",
            "c,Belt again,105"]  # fmt: skip
    table = folder / "shop.csv"
    table.write_text("id,title,image\n" + "".join(f"{row}.jpg\n" for row in rows))
    prepare(table, tmp_path / "s", images=folder / "images", **QUICK)
    store = FeatureStore.open(tmp_path / "s")
    assert (store.ids, store.titles) == (["a", "b", "c"], ["Hat", "Cap at last", "Belt"])
    assert Path(store.images[1]).name == "104.jpg" and len(set(store.image_hashes)) == 3
    problems = [json.loads(line) for line in (tmp_path / "s" / "problems.jsonl").read_text().splitlines()]
    assert [(p["kind"], p["row"], p["id"]) for p in problems] == [
        ("duplicate id", 6, "b"), ("duplicate id", 8, "c"), ("unreadable image", 3, "b"), ("unreadable image", 4, "b"),
    ]  # fmt: skip
    (folder / "images" / "104.jpg").write_bytes(b"")
    (folder / "images" / "105.jpg").write_bytes(b"")
    prepare(table, tmp_path / "t", images=folder / "images", **QUICK)
    assert FeatureStore.open(tmp_path / "t").ids == ["a", "c"]


def test_features_that_are_no_numbers_are_problems(catalogue, tmp_path, monkeypatch):
    Image.new("RGB", (40, 60), "white").save(catalogue / "images" / "104.jpg")
    encode = PatchEncoder.encode

    def beyond_float16_on_white(self, images_ISS3):
        white_I = (images_ISS3.flatten(1).float().mean(1) > 250).float()
        return encode(self, images_ISS3) + 1e5 * white_I[:, None, None]

    monkeypatch.setattr(PatchEncoder, "encode", beyond_float16_on_white)
    for batch_size in (1, 4):
        out = tmp_path / f"s{batch_size}"
        report = prepare(catalogue, out, dtype="float16", batch_size=batch_size, **QUICK)
        store = FeatureStore.open(out)
        assert store.ids == [str(100 + i) for i in range(9) if i != 4] and store.verify() == []
        assert report.problems == {"non-finite features": 1}
        assert json.loads((out / "problems.jsonl").read_text())["row"] == 6
    assert len(FeatureStore.open(prepare(catalogue, tmp_path / "wide", dtype="float32", **QUICK).store)) == 9


def test_a_photo_that_cannot_be_read_stops_a_strict_job(catalogue, tmp_path):
    (catalogue / "images" / "107.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"styles\.csv: row 9 \(id 107\): image .*107\.jpg cannot be read .*--strict"):
        prepare(catalogue, tmp_path / "s", strict=True, **QUICK)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shop"]


def test_no_photo_can_be_read(catalogue, tmp_path):
    for photo in (catalogue / "images").iterdir():
        photo.write_bytes(b"x")
    with pytest.raises(InputError, match=r"no photo can be used; the first: .*100\.jpg"):
        prepare(catalogue, tmp_path / "s", **QUICK)
    assert not (tmp_path / "s").exists()


def test_queries_of_a_catalogue_and_of_clicks(tmp_path, capsys):
    """A row that stands in for another has that one's queries."""
    folder = write_catalogue(tmp_path / "shop", count=3)
    (folder / "images" / "101.jpg").write_bytes(b"not a photo")
    table, clicks = folder / "shop.csv", folder / "clicks.csv"
    table.write_text("id,title,image,query\na,Hat,100.jpg,warm hat\na,Hat,100.jpg,\"hat, warm\"\nb,Cap,101.jpg,cap\n"
                     "b,Cap again,102.jpg,\n")  # fmt: skip
    clicks.write_text("query,id\ncap,a\nhat,b\nscarf,c\n")
    words = ["prepare", str(table), "--out", str(tmp_path / "s"), "--images", str(folder / "images"), "--holdout", "0"]
    assert main([*words, "--queries", str(clicks), "--json", str(tmp_path / "report.json"), *QUICK_WORDS]) == 0
    store = FeatureStore.open(tmp_path / "s")
    assert store.titles == ["Hat", "Cap again"] and store.queries == ["warm hat\nhat, warm\ncap", "cap\nhat"]
    assert "queries: 5 pairs of a query and a product" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["queries"] == 5
    problems = [json.loads(line) for line in (tmp_path / "s" / "problems.jsonl").read_text().splitlines()]
    assert (str(clicks), 4, "unknown product") in [(p["file"], p["row"], p["kind"]) for p in problems]


def test_twins_are_held_out_together(tmp_path):
    """Rows 0 and 30 share a title, 30 and 2 a photo, 2 and 3 a group: they are one, and wherever they go none leaks."""
    folder = write_catalogue(tmp_path / "shop", count=40)
    lines = [f"{100 + i},T{i % 30},P{i}" for i in range(40)]  # rows 0 and 30, 1 and 31, ... share a title
    lines[3] = "103,T3,P2"
    (folder / "styles.csv").write_text("id,title,productID\n" + "\n".join(lines) + "\n")
    (folder / "images" / "130.jpg").write_bytes((folder / "images" / "102.jpg").read_bytes())
    leaking = prepare(folder, tmp_path / "rows", holdout=0.4, split_by="none", columns={"group": "productID"}, **QUICK)
    assert leaking.leaks["validation"]["title"] > 0 and FeatureStore.open(tmp_path / "rows").manifest.split_by == "none"
    columns = {"group": "productID"}
    reports = [prepare(folder, tmp_path / f"s{seed}", holdout=0.4, seed=seed, columns=columns, **QUICK)
               for seed in range(2)]  # fmt: skip
    for seed, report in enumerate(reports):
        store = FeatureStore.open(tmp_path / f"s{seed}")
        assert store.groups[:4] == ["P0", "P1", "P2", "P2"] and len(set(store.image_hashes)) == 39
        assert len({store.splits[row] for row in (0, 30, 2, 32, 3, 33)}) == 1
        assert report.leaks == {"validation": {"products": 0, "title": 0, "photo": 0, "group": 0}}
        assert store.manifest.leaks == report.leaks and store.manifest.split_by == "group,title,photo"
    assert FeatureStore.open(tmp_path / "s0").splits != FeatureStore.open(tmp_path / "s1").splits


def test_a_test_split_of_the_command_line(tmp_path, capsys):
    """As `evaluate --split test` reads it; twins of validation and test do not meet either."""
    folder = write_catalogue(tmp_path / "shop", count=40)
    lines = [f"{100 + i},T{i % 30}" for i in range(40)]
    (folder / "styles.csv").write_text("id,title\n" + "\n".join(lines) + "\n")
    words = ["prepare", str(folder), "--out", str(tmp_path / "s"), *QUICK_WORDS]
    assert main([*words, "--holdout", "0.2", "--test", "0.3"]) == 0
    assert "leaks: none" in capsys.readouterr().out
    store = FeatureStore.open(tmp_path / "s")
    assert (store.manifest.holdout, store.manifest.test) == (0.2, 0.3)
    assert store.manifest.splits == {name: len(store.rows(name)) for name in ("train", "validation", "test")}
    assert 10 <= len(store.rows("test")) <= 14 and 6 <= len(store.rows("validation")) <= 10
    assert all(store.splits[i] == store.splits[i + 30] for i in range(10))
    nothing = {"products": 0, "title": 0, "photo": 0, "group": 0}
    assert store.manifest.leaks == {"test": nothing, "validation": nothing}
    assert main([*words, "--holdout", "0.2", "--overwrite"]) == 0
    without = FeatureStore.open(tmp_path / "s")
    assert without.rows("validation").tolist() == store.rows("validation").tolist()


def test_a_catalogues_own_split_is_respected_and_its_leaks_are_told(tmp_path, capsys):
    folder = write_catalogue(tmp_path / "shop", count=4)
    rows = ["100,Red hat,train", "101,RED  hat!,validation", "102,Cap,test", "103,Scarf,"]
    (folder / "styles.csv").write_text("id,title,split\n" + "\n".join(rows) + "\n")
    (folder / "images" / "102.jpg").write_bytes((folder / "images" / "103.jpg").read_bytes())
    summary = tmp_path / "summary.json"
    words = ["prepare", str(folder), "--out", str(tmp_path / "s"), "--json", str(summary), *QUICK_WORDS]
    assert main([*words, "--holdout", "0.5"]) == 0
    store = FeatureStore.open(tmp_path / "s")
    assert store.splits == ["train", "validation", "test", "train"]  # without one, among others that have one
    assert (store.manifest.holdout, store.manifest.split_by) == (0.0, "")
    printed = capsys.readouterr().out
    assert (
        "leaks: 1 of test also stand in train (1 by photo); 1 of validation also stand in train (1 by title)" in printed
    )
    one = {"products": 1, "title": 0, "photo": 0, "group": 0}
    leaks = {"test": one | {"photo": 1}, "validation": one | {"title": 1}}
    assert json.loads(summary.read_text())["leaks"] == leaks == store.manifest.leaks


def test_a_group_column_that_is_constant_is_warned_of(tmp_path, capsys):
    folder = write_catalogue(tmp_path / "shop", count=12)
    words = ["prepare", str(folder), "--out", str(tmp_path / "s"), "--column", "group=subCategory", *QUICK_WORDS]
    assert main(words) == 0
    error = capsys.readouterr().err
    assert "WARNING: 12 of 12 products count as one, with id 100 (bound by group, title, photo)" in error
    assert "WARNING: 0 of 12 products are held out (0.0%) where --holdout asked for 10.0%" in error


def test_columns_of_the_command_line():
    assert parse_columns(["title=name", "split="]) == {"title": "name", "split": ""}
    with pytest.raises(InputError, match="--column title: write FIELD=COLUMN"):
        parse_columns(["title"])


def test_ordered_keeps_order_and_stops_early():
    from concurrent.futures import ThreadPoolExecutor

    begun = []

    def slow(i):
        begun.append(i)
        time.sleep(0.002 * (i % 3))
        return i

    with ThreadPoolExecutor(3) as pool:
        assert list(ordered(pool, slow, range(20), ahead=4)) == list(range(20))
        begun.clear()
        results = ordered(pool, slow, range(1000), ahead=4)
        next(results)
        results.close()
    assert len(begun) <= 4


def test_command_line(broken, tmp_path, capsys):
    out, summary = tmp_path / "s", tmp_path / "summary.json"
    status = main(["prepare", str(broken), "--out", str(out), "--json", str(summary), "--holdout", "0.3", *QUICK_WORDS])
    printed = capsys.readouterr().out
    assert status == 0 and len(printed.splitlines()) == 3 and "leaks: none" in printed
    assert "7 products" in printed and "images/s" in printed and "(NOT TRAINED)" in printed
    assert "skipped 4: unreadable image 2" in printed and "problems.jsonl" in printed
    value = json.loads(summary.read_text())
    assert value["products"] == 7 and value["skipped"] == 4 and value["images_per_second"] > 0
    assert main(["prepare", str(broken), "--out", str(out), "--overwrite", *QUICK_WORDS]) == 0


def test_a_spreadsheets_export_by_the_command_line(catalogue, tmp_path):
    table = catalogue / "shop.csv"
    table.write_bytes("id~title\n100~Crème\n".encode("cp1252"))
    words = ["prepare", str(table), "--out", str(tmp_path / "s"), "--delimiter", "~", "--encoding", "cp1252"]
    assert main([*words, *QUICK_WORDS]) == 0
    assert FeatureStore.open(tmp_path / "s").titles == ["Crème"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: no such file or directory; give a catalogue"),
        (["{shop}", "--holdout", "1.5"], r"--holdout 1.5: must lie in [0, 1)"),
        (["{shop}", "--test", "-0.1"], "--test -0.1: must lie in [0, 1)"),
        (["{shop}", "--holdout", "0.5", "--test", "0.5"], "--test 0.5: with --holdout 0.5 nothing is left to train on"),
        (["{shop}", "--dtype", "int8"], "--dtype int8: must be bfloat16, float16 or float32"),
        (["{shop}", "--patching", "whole"], "--patching whole: must be separate, map or hypercolumns"),
        (["{shop}", "--batch-size", "0"], "--batch-size 0: must be 1 or more"),
        (["{shop}", "--split-by", "colour"], "--split-by colour: 'colour' is unknown; write none, or some of"),
        (["{shop}", "--workers", "-1"], "--workers -1: must be 1 or more"),
        (["{shop}", "--grid", "0"], "--grid 0: must be 1 or more"),
        (["{shop}", "--device", "abacus"], "--device abacus: cannot be used"),
        (["{shop}", "--encoder", "./none"], "--encoder ./none: no such directory"),
        (["{shop}", "--encoder", "random:x"], "--encoder random:x: write random"),
        (["{shop}", "--column", "title=name"], "no column name for title"),
        (["{shop}", "--delimiter", "::"], "--delimiter '::': must be one character, or tab"),
        (["{shop}", "--queries", "nowhere.csv"], "nowhere.csv: cannot be read"),
        (["{shop}", "--images", "nowhere"], "nowhere: no such image folder"),
        (["{shop}", "--json", "no/such/file.json"], "no/such/file.json: no directory no/such"),
        (["{shop}", "--out", "{shop}"], "exists and is not a feature store"),
        (["{shop}", "--out", "/proc/store"], "/proc/store: cannot be written"),
    ],
)
def test_input_errors_are_one_line_and_status_2(catalogue, tmp_path, capsys, words, message):
    words = [word.replace("{shop}", str(catalogue)) for word in words]
    out = [] if "--out" in words else ["--out", str(tmp_path / "s")]
    given = ["--encoder", "random"] if "--encoder" not in words else []
    assert main(["prepare", *words, *out, *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fashionbert prepare: error: ") and message in error and len(error.splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shop"]


def test_an_existing_store_is_kept(catalogue, tmp_path, capsys):
    words = ["prepare", str(catalogue), "--out", str(tmp_path / "s"), *QUICK_WORDS]
    assert main(words) == 0
    assert main(words) == 2
    assert "exists; add --overwrite to replace it" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_an_interrupted_job_leaves_no_half_store(tmp_path):
    catalogue = write_catalogue(tmp_path / "shop", count=300)
    out = tmp_path / "out" / "s"
    command = [sys.executable, "-m", "fashionbert_fast", "prepare", str(catalogue), "--out", str(out)]
    words = [*command, "--encoder", "random", "--device", "cpu", "--patch-pixels", "64", "--batch-size", "1"]
    job = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    while job.poll() is None and not list(out.parent.glob(".s.*/features.bin")):
        time.sleep(0.02)
    job.send_signal(signal.SIGINT)
    error = job.communicate(timeout=60)[1]
    assert job.returncode == 2 and "Traceback" not in error
    assert error.splitlines()[-1] == "fashionbert prepare: error: interrupted"
    assert list(out.parent.iterdir()) == []


def test_help_has_examples_and_needs_no_torch():
    script = (
        "import sys; from fashionbert_fast.cli import main\n"
        "try: main(['prepare', '--help'])\n"
        "finally: print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "examples:" in done.stdout and "--encoder efficientnet-lite0" in done.stdout
    assert done.stdout.splitlines()[-1] == "False False", done.stderr


def test_arguments_match_the_function():
    from inspect import signature

    from fashionbert_fast.commands.prepare import add_arguments

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    defaults = vars(parser.parse_args(["x", "--out", "y"]))
    for name, parameter in signature(prepare).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and name not in ("columns", "roots", "most_pixels"):
            assert defaults[name] == parameter.default, name
    assert defaults["allow_root"] == []
    assert defaults["max_megapixels"] * 1e6 == signature(prepare).parameters["most_pixels"].default
