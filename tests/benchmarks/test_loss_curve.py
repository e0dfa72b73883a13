"""`benchmarks.steps.loss_curve`: runs on a tiny store, and its judgement on curves made up to pass and to fail."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from benchmarks.steps import loss_curve
from benchmarks.steps.loss_curve import CURVES, WINDOW, main, scoreboard, smoothed

NAMES = ("reference fp32", "reference fp32, seed 1", "reference fp32, seed 2", "ours fp32", "ours bf16")


@pytest.fixture(scope="module")
def measured(store_path, tmp_path_factory):
    path = tmp_path_factory.mktemp("curves") / "curves.json"
    assert main(["--store", str(store_path), "--json", str(path), "--steps", "6", "--pairs", "8"]) == 0
    return path, json.loads(path.read_text())


def test_the_file_holds_the_contracts_scoreboard_and_the_curves(measured):
    path, result = measured
    assert {"device", "versions", "commit", "rows", "curves", "settings", "measured"} == set(result)
    for row in result["rows"]:
        assert set(row) == {"proof", "k", "n", "met"}
        assert row["met"] == (row["k"] == row["n"] > 0)
    assert set(result["curves"]) == set(NAMES)
    for curves in result["curves"].values():
        assert set(curves) == set(CURVES)
        assert all(len(values) == 6 and np.isfinite(values).all() for values in curves.values())
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_fp32_agrees_and_the_runs_start_as_they_should(measured):
    curves = {name: np.asarray(list(values.values())) for name, values in measured[1]["curves"].items()}
    reference = curves["reference fp32"]
    np.testing.assert_allclose(curves["ours fp32"], reference, rtol=1e-4)
    np.testing.assert_allclose(curves["ours bf16"][:, 0], reference[:, 0], rtol=2e-2)
    assert (curves["ours bf16"] != reference).all()  # really rounded
    assert (curves["reference fp32, seed 1"][:, 0] != reference[:, 0]).all()  # really another seed
    assert reference[0, -1] < reference[0, 0]  # it learns


def _learned(dtype: torch.dtype, lr: float) -> torch.Tensor:
    """The weight after 50 steps on a loss of constant gradient."""
    config = loss_curve.configuration("unused", steps=50, pairs=8, lr=lr, seed=0)
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    batch = torch.ones(1, 1)
    curves = loss_curve.learn(
        "x", model, lambda m, b: ((loss := m(b.to(m.weight.dtype)).float().sum()), loss.detach().repeat(3)),
        [[batch]] * 50, config, dtype,
    )  # fmt: skip
    assert curves.shape == (50, 4)
    return model.weight.detach()


def test_bf16_learns_on_a_float32_master():
    """Updates far below a bfloat16 rounding of the weight (2^-8) still add up."""
    torch.testing.assert_close(_learned(torch.bfloat16, 1e-5), _learned(torch.float32, 1e-5), atol=1e-6, rtol=0)
    assert _learned(torch.bfloat16, 1e-5).item() < 1 - 1e-4


def _made_up(steps: int = 50) -> dict[str, np.ndarray]:
    """Falling curves; the seeds differ by 0.1 and 0.2."""
    falling = 5 / np.sqrt(np.arange(1, steps + 1))[:, None] * np.ones(4)
    return {name: falling + offset for name, offset in zip(NAMES, (0, 0.1, 0.2, 0, 0), strict=True)}


def test_what_is_accepted():
    rows, measured = scoreboard(_made_up())
    assert [(row["k"], row["n"], row["met"]) for row in rows] == [(50, 50, True), (50 - WINDOW + 1,) * 2 + (True,)] * 4
    assert measured["mlm"]["bf16_largest_share_of_spread"] == 0


def test_one_step_of_fp32_apart_is_refused():
    runs = _made_up()
    runs["ours fp32"][17, CURVES.index("mpm")] *= 1 + 2e-4
    refused = [row for row in scoreboard(runs)[0] if not row["met"]]
    assert [(row["k"], row["n"]) for row in refused] == [(49, 50)]
    assert refused[0]["proof"].startswith("mpm loss, fp32")


def test_bf16_further_than_the_spread_is_refused():
    runs = _made_up()
    runs["ours bf16"][:, CURVES.index("tia")] -= 0.21  # outside on the other side of the reference, too
    refused = [row for row in scoreboard(runs)[0] if not row["met"]]
    assert [(row["k"], row["proof"].startswith("tia loss, bf16")) for row in refused] == [(0, True)]


def test_nan_is_refused():
    runs = _made_up()
    runs["ours fp32"][3], runs["ours bf16"][30] = np.nan, np.nan
    assert not any(row["met"] for row in scoreboard(runs)[0])


def test_smoothing_is_the_mean_of_the_last_steps():
    values = np.arange(30.0) ** 2
    np.testing.assert_allclose(smoothed(values), [values[i : i + WINDOW].mean() for i in range(30 - WINDOW + 1)])
    np.testing.assert_allclose(smoothed(values[:3]), values[:3].mean())


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--store", "/nowhere", "--json", "{}/x.json"], "/nowhere"),
        (["--store", "{store}", "--json", "/nowhere/x.json"], "/nowhere/x.json"),
        (["--store", "{store}", "--json", "{}/x.png"], "x.png"),
        (["--store", "{store}", "--json", "{}/x.json", "--steps", "0"], "train.steps"),
        (["--store", "{store}", "--json", "{}/x.json", "--pairs", "1000"], "micro_batch_size"),
        (["--store", "{store}", "--json", "{}/x.json", "--lr", "-1"], "train.lr"),
    ],
)
def test_bad_input_is_one_line(argv, named, store_path, tmp_path, capsys):
    assert main([word.format(tmp_path, store=store_path) for word in argv]) == 2
    error = capsys.readouterr().err.strip()
    assert named in error and "\n" not in error
