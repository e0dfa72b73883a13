"""The picture beside the benchmark table: readable sizes, rows of every kind, and where it is written."""

from __future__ import annotations

import json

import matplotlib.image
import matplotlib.pyplot as plt
import pytest

from benchmarks import plot
from benchmarks.measure import Row
from benchmarks.plot import ROW_INCHES, plot_rows
from fashionbert_fast.cli import main

PEERS = ["plain PyTorch", "torch.compile", "bare $matrix$ products"]


def _result(count: int) -> dict:
    rows = []
    for i in range(count):
        ratio = 0.5 * 1.04**i
        rows.append({
            "case": f"an_operator M={1024 * i} H=768 bfloat16 forward+backward", "peer": PEERS[i % 3], "value": 1.0,
            "peer_value": ratio, "unit": "us", "ratio": ratio, "target": 1.2, "met": ratio >= 1.2,
            "spread": [0.9 * ratio, 1.1 * ratio],
        })  # fmt: skip
    return {"device": "a CPU of 2 cores", "versions": {}, "commit": "0123456789ab+", "rows": rows}


@pytest.mark.parametrize("count", [0, 1, 5, 150])
def test_the_picture_grows_with_the_rows(tmp_path, count):
    open_before = plt.get_fignums()
    plot_rows(_result(count), tmp_path / "x.png")
    assert plt.get_fignums() == open_before
    height, width, _ = matplotlib.image.imread(tmp_path / "x.png").shape
    assert width == 1400
    assert 100 * ROW_INCHES * count <= height <= 100 * ROW_INCHES * count + 300


def test_what_the_picture_says(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(plot.plt, "close", kept.append)
    result = _result(6)
    result["rows"][5]["case"] = result["rows"][4]["case"]
    result["rows"].append({"case": "useful tokens", "value": 1.0, "unit": "tokens/s"})
    result["rows"].append({"proof": "a scoreboard's row", "k": 1, "n": 1, "met": True})
    plot_rows(result, tmp_path / "x.png")
    figure = kept[0]
    (axis,) = figure.axes
    assert axis.get_xscale() == "log"
    shared = result["rows"][4]["case"]
    named = [row["case"] for row in result["rows"][:4]] + [f"{shared}: {PEERS[1]}", f"{shared}: {PEERS[2]}"]
    assert [label.get_text() for label in axis.get_yticklabels()] == named
    assert "a CPU of 2 cores" in axis.get_title("left") and "0123456789ab+" in axis.get_title("left")
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == [*PEERS, "target", "p20 to p80"]
    bars = [(bar.get_x(), bar.get_width(), bar.get_facecolor()) for bar in axis.patches]
    for (left, width, _), row in zip(bars, result["rows"], strict=False):
        assert (left, left + width) == pytest.approx((1, row["ratio"]))
    assert bars[0][2] == bars[3][2] != bars[1][2]  # a colour a peer
    whiskers, targets = (collection.get_segments() for collection in axis.collections)
    assert whiskers[1][:, 0].tolist() == pytest.approx(result["rows"][1]["spread"])
    assert targets[1][:, 0].tolist() == [1.2, 1.2]
    assert sum("missed" in text.get_text() for text in axis.texts) == 6
    plt.close(figure)


def test_ratios_without_bounds_stay_on_the_picture(tmp_path):
    result = _result(2)
    result["rows"][0] |= {"ratio": 0.0, "spread": [0.0, 0.0]}  # nothing measurable on either side
    result["rows"][1] |= {"ratio": 1e9, "spread": [1e8, 1e10]}
    plot_rows(result, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 0


def test_bench_writes_the_picture_beside_the_json(tmp_path, monkeypatch, capsys):
    import benchmarks.ops.bench_min_norm_weights as module

    row = Row("a case", "a peer", 1.0, 2.0, "us", 2.0, 1.5, True, [1.9, 2.1])
    monkeypatch.setattr(module, "rows", lambda device, quick: [row])
    monkeypatch.setattr("benchmarks.run.SUITES", {"ops": {"min_norm_weights": "benchmarks.ops.bench_min_norm_weights"}})
    assert main(["bench", "ops", "--json", str(tmp_path / "ops.json")]) == 0
    assert json.loads((tmp_path / "ops.json").read_text())["rows"][0]["case"] == "a case"
    assert (tmp_path / "ops.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path / "ops.png") in capsys.readouterr().out


def test_bench_help_says_where_the_picture_goes(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    assert ".png" in capsys.readouterr().out


def test_a_json_named_like_its_picture_is_refused(tmp_path, capsys):
    assert main(["bench", "ops", "--json", str(tmp_path / "ops.png")]) == 2
    assert "ops.png" in capsys.readouterr().err
