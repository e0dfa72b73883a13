"""The speedrun's clock, its two runs on a tiny store, and its table of records."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import TINY_MODEL
from training import own_traces

from benchmarks import measurements, speedrun
from benchmarks.speedrun import PLAIN, Clock
from benchmarks.steps.peers import pad
from fashionbert_fast.engine import train
from fashionbert_fast.engine.reporting.metrics import read_metrics
from fashionbert_fast.errors import InputError

CPU = torch.device("cpu")
TINY = (*TINY_MODEL, "train.steps=6", "train.micro_batch_size=8", "validation.every=2", "validation.pairs=24")


def tiny(store, run, *overrides: str):
    return speedrun.configuration(store, run, 0, [*TINY, *overrides])


@pytest.fixture
def ticking(monkeypatch):
    """A clock that a test moves."""
    now = [100.0]
    monkeypatch.setattr(speedrun.time, "perf_counter", lambda: now[0])
    return now


def test_validations_are_not_counted_and_the_first_to_reach_it_counts(ticking):
    clock = Clock(0.8)
    for trained, validated, accuracy in ((3, 50, 0.5), (4, 60, 0.8), (5, 70, 0.9), (6, 80, 0.7)):
        ticking[0] += trained

        def measure(validated=validated, accuracy=accuracy):
            ticking[0] += validated
            return accuracy

        clock.validate(measure)
    assert clock.reached == 7 and clock.seen == [(3, 0.5), (7, 0.8), (12, 0.9), (18, 0.7)]


def test_both_start_from_the_same_weights_and_see_the_same_pairs(store_path, tmp_path):
    with own_traces():
        speedrun.check_same_start(tiny(store_path, tmp_path, *PLAIN), CPU)  # with the demo's task weights
    plain, dataset, _ = speedrun.plain_start(tiny(store_path, tmp_path, *PLAIN), CPU)
    batch = dataset[0][0]
    padded = pad(batch)
    assert not dataset.config.predict_negatives  # so fewer patches are predicted than are masked
    assert len(padded.mpm_position_K) == int(batch.targets.counts_T[2]) < int(padded.patch_mask_BP.sum())
    assert padded.patch_mask_BP.flatten()[padded.mpm_position_K].all()
    assert batch.targets.tia_label_B[padded.mpm_position_K // padded.patch_mask_BP.shape[1]].all()  # of matches
    assert plain.preference_T.tolist() == pytest.approx([0.1, 1.0, 0.1])


def test_both_stop_where_the_target_is_reached(store_path, tmp_path):
    """A target that the first validation reaches, by the demo's own first steps, and one that none does."""
    first = ("contrastive.first_steps=2", "contrastive.subcategory_steps=0", "contrastive.batch_size=8")
    for target, validations, own in ((0.0, 1, first), (1.1, 3, PLAIN)):
        run = tmp_path / f"ours-{target}"
        with own_traces():
            ours = speedrun.run_ours(tiny(store_path, run, *own), target)
            plain = speedrun.run_plain(tiny(store_path, tmp_path / f"plain-{target}", *PLAIN), target, CPU)
        for clock in (ours, plain):
            assert len(clock.seen) == validations and (clock.reached is None) == (target > 1)
        validated = [of["validation"]["alignment_accuracy"] for of in read_metrics(run) if "validation" in of]
        assert [accuracy for _, accuracy in ours.seen] == validated
    assert train.Validation is speedrun.Validation  # put back
    # the same weights, pairs and updates: curves of one model
    assert [accuracy for _, accuracy in ours.seen] == pytest.approx([of for _, of in plain.seen], abs=2 / 24)


def clocks(*seconds):
    made = []
    for pair in seconds:
        both = Clock(0.8), Clock(0.8)
        for clock, reached in zip(both, pair, strict=True):
            clock.reached, clock.seen = reached, [(9.0, 0.6)]
        made.append(both)
    return made


def test_the_ratio_is_the_median_of_the_seeds_that_have_both():
    found = clocks((10.0, 20.0), (10.0, 40.0), (10.0, 30.0), (12.0, None))
    (row,) = speedrun.rows(found, 0.8)
    assert (row.value, row.peer_value, row.ratio, row.spread, row.met) == (10.0, 30.0, 3.0, [2.0, 4.0], True)
    ours, plain = speedrun.proofs(found, 0.8)
    assert (ours["k"], ours["n"], ours["met"], plain["k"], plain["met"]) == (4, 4, True, 3, False)
    assert speedrun.rows(clocks((10.0, None)), 0.8) == []


def test_records_are_added_and_shown(tmp_path):
    path = tmp_path / "speedrun.json"
    row = {"value": 10.0, "peer_value": 30.0, "ratio": 3.0, "spread": [2.0, 4.0]}
    result = {"device": "CPU", "versions": {}, "commit": "abcdef123456", "rows": [row], "proofs": [{"n": 3}]}
    speedrun.record(result, path)
    speedrun.record(result | {"rows": [row | {"ratio": 3.5}]}, path)
    written = json.loads(path.read_text())
    assert [of["ratio"] for of in written["records"]] == [3.0, 3.5]
    assert written["records"][0]["machine"].startswith("CPU, ")
    shown = measurements.speedrun(written)
    assert shown.count("| `abcdef1` | CPU, ") == 2 and "| 3 | 10.0 | 30.0 | 3.50 (2.00 to 4.00) |" in shown
    with pytest.raises(InputError, match="nothing was added"):
        speedrun.record(result | {"rows": []}, path)
    assert json.loads(path.read_text()) == written


def test_bad_input_is_one_line(tmp_path, capsys):
    for words, named in (
        (["--json", "/nowhere/x.json"], "/nowhere"),
        (["--json", str(tmp_path / "x"), "--seeds", "0"], "--seeds"),
    ):
        assert speedrun.main(words) == 2
        error = capsys.readouterr().err.strip()
        assert named in error and "\n" not in error
