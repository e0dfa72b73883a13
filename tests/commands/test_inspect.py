"""`fashionbert inspect`: the figures are right, damage and disagreement are told and end in status 2."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fashionbert_fast.catalogue.product import Problems, Product
from fashionbert_fast.cli import main
from fashionbert_fast.errors import InputError
from fashionbert_fast.features.compare import compare
from fashionbert_fast.features.prepare import prepare
from fashionbert_fast.features.sheet import LONE_TWIN, TWIN_COLOURS, choose_rows, write_sheet
from fashionbert_fast.features.statistics import describe, spread
from fashionbert_fast.features.store import FeatureStore, Manifest, StoreWriter

PATCHES, FEATURES = 4, 5


def write_store(out: Path, features_NPD: torch.Tensor, **columns: list[str]) -> Path:
    count = len(features_NPD)
    defaults = {"id": [f"p{i}" for i in range(count)], "title": [f"Hat {i}" for i in range(count)],
                "split": ["train"] * count}  # fmt: skip
    values = defaults | columns
    products = [
        Product(category="Tops", subcategory="Tees", image=Path(f"/nowhere/{i}.jpg"),
                **{name: column[i] for name, column in values.items()})
        for i in range(count)
    ]  # fmt: skip
    manifest = Manifest(
        grid=2,
        resize={"image_pixels": 16, "patch_pixels": 8, "interpolation": "bilinear"},
        encoder={"name": "toy", "architecture": "toy", "pooling": "mean", "weights_sha256": "0" * 64,
                 "feature_size": FEATURES, "trained": False, "computed_in": "float32"},
        normalisation={"mean": [0.5] * 3, "std": [0.25] * 3},
    )  # fmt: skip
    problems = Problems()
    problems.add("styles.csv", 9, "empty title", "no title", id="x")
    with StoreWriter(out, patches=PATCHES, feature_size=FEATURES, dtype="float32") as writer:
        writer.append(products, features_NPD)
        writer.commit(manifest, problems)
    return out


def some_features(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, PATCHES, FEATURES, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def twins(tmp_path) -> Path:
    """Ten rows: 0, 1, 2 share a title, 3 and 4 a photo, 5 and 6 a group; 2 and 4 are held out."""
    return write_store(
        tmp_path / "twins", some_features(10),
        title=["Red hat", "red hat", "RED HAT!", *(f"Scarf {i} of wool" for i in range(7))],
        image_hash=["", "", "", "a", "a", "", "", "", "", ""], group=["", "", "", "", "", "g", "g", "", "", "h"],
        split=["train", "train", "validation", "train", "validation", *["train"] * 5],
        queries=["hat", "hat\nwarm hat", "HAT\nred hat", *[""] * 7],
    )  # fmt: skip


def test_figures(twins):
    report = describe(FeatureStore.open(twins))
    assert report["products"] == 10 and report["splits"] == {"train": 8, "validation": 2}
    assert report["leaks"] == {"validation": {"products": 2, "title": 1, "photo": 1, "group": 0}}
    assert report["twins"] == {
        "products": 7, "sets": 3, "sizes": {"2": 2, "3": 1},
        "products_that_share": {"group": 2, "title": 3, "photo": 2},
        "largest": {"size": 3, "id": "p0", "title": "Red hat"},
    }  # fmt: skip
    assert report["queries"] == {
        "train": {"pairs": 3, "queries": 2, "products": 2},
        "validation": {"pairs": 2, "queries": 2, "products": 1, "also_in_train": 1},
    }
    assert report["titles"]["words"] == {"min": 2, "median": 4, "mean": pytest.approx(3.4), "p95": 4, "max": 4}
    assert report["titles"]["characters"]["min"] == 7 and report["titles"]["characters"]["max"] == 15
    assert report["categories"] == {"Tops": 10} and report["subcategories"] == 1
    assert report["problems"] == {"empty title": 1} and len(report["content_sha256"]) == 64
    json.dumps(report, allow_nan=False)


def test_queries_are_told_split_by_split(twins, tmp_path, capsys):
    assert main(["inspect", str(twins), "--out", str(tmp_path / "sheet.png")]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "2 different ones, 1 of them asked of training products too, of 1 products, 2 pairs" in shown
    assert "2 different ones, of 2 products, 3 pairs" in shown


def test_lengths_are_quantiles():
    assert spread([1, 2, 3, 4, 100]) == {"min": 1, "median": 3, "mean": 22, "p95": pytest.approx(80.8), "max": 100}


def test_statistics_of_features(tmp_path):
    features_NPD = some_features(30).mul(3).add(1)
    features_NPD[..., 1] = 7.5  # never changes
    features_NPD[:15, :, 2] = 0
    store = FeatureStore.open(write_store(tmp_path / "s", features_NPD))
    found = describe(store)["features"]
    assert found["mean"] == pytest.approx(float(features_NPD.mean()), rel=1e-6)
    assert found["std"] == pytest.approx(float(features_NPD.std(correction=0)), rel=1e-6)
    assert found["zeros"] == pytest.approx(0.1) and found["constant_dimensions"] == 1
    assert found["non_finite"] == 0 and found["rows"] == 30


def spoil(store: Path, row: int, value: float) -> None:
    mapped_NPD = np.memmap(store / "features.bin", dtype="<f4", mode="r+", shape=(10, PATCHES, FEATURES))
    mapped_NPD[row, 1, 2] = value
    mapped_NPD.flush()


def test_verify_names_every_damaged_row_and_ends_in_2(twins, tmp_path, capsys):
    words = ["inspect", str(twins), "--verify", "--json", str(tmp_path / "report.json")]
    assert main(words) == 0
    assert "every row is as it was written" in capsys.readouterr().out
    spoil(twins, 0, 3.0)  # opening would refuse the first row
    spoil(twins, 5, float("nan"))
    assert main(words) == 2
    done = capsys.readouterr()
    assert done.err.count("\n") == 1 and "2 of 10 rows or files are not as they were written" in done.err
    report = json.loads((tmp_path / "report.json").read_text())
    assert [(d["row"], d["id"]) for d in report["verify"]["damages"]] == [(0, "p0"), (5, "p5")]
    assert report["features"]["non_finite"] == 1
    assert "p0" in done.out and "p5" in done.out and not list(Path(".").glob("twins.png"))
    assert main(["inspect", str(twins)]) == 2
    assert "row 0 (id p0)" in capsys.readouterr().err


def test_a_store_without_hashes_says_so(twins, capsys, monkeypatch, tmp_path):
    import pyarrow.parquet as pq

    monkeypatch.chdir(tmp_path)
    manifest = json.loads((twins / "manifest.json").read_text())
    kept = {name: part for name, part in manifest.items() if name not in ("manifest_sha256", "content_sha256", "files")}
    (twins / "manifest.json").write_text(json.dumps(kept))
    pq.write_table(
        pq.read_table(twins / "products.parquet").drop_columns(["features_crc32"]), twins / "products.parquet"
    )
    assert main(["inspect", str(twins), "--verify"]) == 0
    printed = capsys.readouterr().out
    assert "carries no hashes" in printed and "no hashes; all values are finite" in printed


def test_stores_that_agree_and_stores_that_do_not(tmp_path, capsys):
    features_NPD = some_features(6)
    noisy_NPD = features_NPD * (1 + 0.01 * some_features(6, seed=1).clamp(-1, 1))
    ours = write_store(tmp_path / "a", features_NPD)
    order = [5, 3, 1, 0, 2]
    theirs = write_store(tmp_path / "b", noisy_NPD[order], id=[f"p{i}" for i in order],
                         title=["Hat 5", "Hat 3", "Cap", "Hat 0", "Hat 2"])  # fmt: skip
    assert main(["inspect", str(ours), "--compare", str(theirs), "--json", str(tmp_path / "c.json")]) == 0
    found = json.loads((tmp_path / "c.json").read_text())["compare"]
    assert (found["common"], found["only_in_first"], found["only_in_second"]) == (5, 1, 0)
    assert found["agree"] and found["titles_differ"] == 1 and 0.001 < found["median"] <= found["largest"] < 0.02
    noisy_NPD[3] *= 1.5
    far = write_store(tmp_path / "far", noisy_NPD)
    capsys.readouterr()
    assert main(["inspect", str(ours), "--compare", str(far)]) == 2
    error = capsys.readouterr().err
    assert "1 of 6 common rows have features more than 2% apart" in error and error.count("\n") == 1
    found = compare(FeatureStore.open(ours), FeatureStore.open(far))
    assert not found["agree"] and found["worst"][0]["id"] == "p3" and 0.3 < found["worst"][0]["distance"] < 0.35


def test_stores_that_cannot_be_compared(tmp_path):
    ours = FeatureStore.open(write_store(tmp_path / "a", some_features(3)))
    others = FeatureStore.open(write_store(tmp_path / "b", some_features(2), id=["x", "y"]))
    with pytest.raises(InputError, match="no id is in both"):
        compare(ours, others)
    others.manifest.normalisation = {"mean": [0.0] * 3, "std": [0.25] * 3}
    with pytest.raises(InputError, match=r"differ in normalisation\.mean"):
        compare(ours, others)


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> tuple[Path, Path]:
    """A catalogue with photos and its store; rows 0 and 7 share a photo, 1 and 2 a title with a dollar sign."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "images").mkdir()
    for i in range(8):
        Image.new("RGB", (40, 60), (30 * i, 10, 200)).save(folder / "images" / f"{i}.png")
    shutil.copy(folder / "images" / "0.png", folder / "images" / "7.png")
    titles = ["Hat", "Belt $5", "belt $5", "靴 [bold]", "Cap", "Scarf", "Tie", "Glove"]
    (folder / "shop.csv").write_text("id,title\n" + "".join(f"{i},{title}\n" for i, title in enumerate(titles)))
    prepare(folder / "shop.csv", folder / "store", encoder="random", grid=2, patch_pixels=32, device="cpu")
    return folder, folder / "store"


def test_a_sheet_of_a_prepared_store(shop, tmp_path, capsys, monkeypatch):
    folder, store = shop
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", str(store)]) == 0
    printed = capsys.readouterr().out
    assert "8 as encoded" in printed and (tmp_path / "store.png").is_file()
    assert Image.open(tmp_path / "store.png").width > 1000
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    opened = FeatureStore.open(moved / "store")
    opened.images[0], opened.images[1] = "/nowhere/0.png", str(moved / "images" / "4.png")
    (moved / "bad.png").write_bytes(b"")
    opened.images[2] = str(moved / "bad.png")
    assert write_sheet(opened, tmp_path / "sheet.png", 8) == {"shown": 5, "missing": 2, "changed": 1}


def test_twins_are_framed_set_by_set(shop, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.axes.Axes.add_patch", lambda axis, patch: drawn.append(patch.get_edgecolor()))
    store = FeatureStore.open(shop[1])
    write_sheet(store, tmp_path / "sheet.png", 8)
    from matplotlib.colors import to_rgba

    assert sorted(drawn) == sorted([to_rgba(TWIN_COLOURS[0])] * 2 + [to_rgba(TWIN_COLOURS[1])] * 2)
    drawn.clear()
    monkeypatch.setattr("fashionbert_fast.features.sheet.choose_rows", lambda *_: [0, 3])
    write_sheet(store, tmp_path / "sheet.png", 2)
    assert drawn == [to_rgba(LONE_TWIN)]


def test_rows_of_the_sheet(shop, twins):
    store = FeatureStore.open(shop[1])
    assert sorted(choose_rows(store, 100)) == list(range(8))
    assert choose_rows(store, 1) == [0]
    chosen = choose_rows(FeatureStore.open(twins), 6)
    assert chosen[-2:] == [0, 1] and len(set(chosen)) == 6 and max(chosen) == 9


def test_lengths_in_tokens(shop, tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hat", "belt", "$", "5", "cap", "sc", "##ar", "##f"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    summary = tmp_path / "report.json"
    out = ["--json", str(summary), "--out", str(tmp_path / "sheet.png"), "--samples", "2"]
    assert main(["inspect", str(shop[1]), "--tokenizer", str(tmp_path), *out]) == 0
    # Belt $5 is three; the longest is "靴 [bold]": one unknown sign, bracket, word and bracket
    assert json.loads(summary.read_text())["titles"]["tokens"]["max"] == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: no such feature store"),
        (["{store}", "--samples", "0"], "--samples 0: must be 1 or more"),
        (["{store}", "--out", "no/such/sheet.png"], "no/such/sheet.png: no directory no/such"),
        (["{store}", "--json", "no/such.json"], "no/such.json: no directory no"),
        (["{store}", "--verify", "--tokenizer", "nowhere"], "nowhere: no tokenizer.json or vocab.txt"),
        (["{store}", "--compare", "nowhere"], "nowhere: no such feature store"),
    ],
)
def test_input_errors_are_one_line_and_status_2(shop, capsys, monkeypatch, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", *(word.replace("{store}", str(shop[1])) for word in words)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fashionbert inspect: error: ") and message in error and error.count("\n") == 1
