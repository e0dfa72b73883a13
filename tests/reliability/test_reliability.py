"""The reliability scoreboard: its short form, and that it counts what fails."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from training import ENVIRONMENT

from fashionbert_fast.data.config import DataConfig
from fashionbert_fast.data.pairs import PairDataset
from fashionbert_fast.data.titles import TokenizedTitles
from fashionbert_fast.data.tokenizer import load_tokenizer, train_wordpiece
from fashionbert_fast.errors import InputError
from fashionbert_fast.features.store import FeatureStore
from tests.reliability import PROOFS, damage, elastic, inject
from tests.reliability import __main__ as command
from tests.reliability.disk import CRASH, compiled
from tests.reliability.trial import Trial, attempt
from tests.reliability.workload import Outcome, overrides, shared_store

sys.path.insert(0, str(Path(__file__).parent))  # for careless_save, here and in ranks
import careless_save

ROOT = Path(__file__).parents[2]


def test_the_short_form(tmp_path):
    """Two ranks: a NaN in each place. One: faults of the disk. Files damaged and resumed from."""
    board = tmp_path / "board.json"
    words = ["--quick", "--only", "damage", "inject", "nan", "--seed", "1", "--json", str(board)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.reliability", *words, "--folder", str(tmp_path / "trials")],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True,
    )  # fmt: skip
    rows = json.loads(board.read_text())["rows"]
    assert [row["proof"] for row in rows] == ["damage", "inject", "nan"]
    assert all(row["met"] and row["k"] == row["n"] > 5 for row in rows), [row["failed"] for row in rows]
    assert done.returncode == 0, done.stderr[-3000:]
    assert list((tmp_path / "trials").iterdir()) == []  # what succeeds leaves nothing


@pytest.mark.parametrize("rank", [0, 1])
def test_elastic_notes_each_pair_that_a_rank_assembles(store_path, tmp_path, monkeypatch, rank):
    monkeypatch.setattr(PairDataset, "_collate", PairDataset._collate)  # put back afterwards
    store = FeatureStore.open(store_path)
    train_wordpiece(store.titles, 200, tmp_path / "tokenizer")
    titles = TokenizedTitles(store.titles, load_tokenizer(tmp_path / "tokenizer"), 16)

    def trained(*words):
        data = PairDataset(store, titles, np.arange(len(store)), DataConfig(), micro_batch_size=3, micro_batches=2,
                           steps=2, rank=rank, world_size=2)  # fmt: skip
        text_rows, image_rows = data.global_rows(1, [0, 1])
        pairs = [[store.ids[text], store.ids[image]] for text, image in zip(text_rows, image_rows, strict=True)]
        mine = [(2, place) for place in range(12) if place // 3 % 2 == rank]
        assert data[1] and elastic.samples(tmp_path, 1) == {(step, place): pairs[place] for step, place in mine}
        return 7

    monkeypatch.setattr(elastic, "fashionbert", trained)
    assert elastic.recorded(tmp_path, "pretrain") == 7


def test_all_proofs_are_there():
    modules = command.chosen(PROOFS)
    assert [module.NAME for module in modules] == list(PROOFS)
    assert all(isinstance(module.TARGET, str) and callable(module.trials) for module in modules)
    with pytest.raises(InputError, match="no such proof"):
        command.chosen(["all"])


def test_what_fails_is_counted_named_and_kept(tmp_path, capsys, monkeypatch):
    def trials(folder, seed, quick):
        yield attempt(folder, "some", "good", lambda directory: "2 of 2")
        yield attempt(folder, "some", "bad: 1/2", lambda directory: (directory / "left").write_text("") or [][1])
        yield Trial("some", "also good", True)
        raise RuntimeError("the proof is broken")

    monkeypatch.setattr(command, "OFTEN", 0)
    so_far = []
    row = command.judge(SimpleNamespace(NAME="some", TARGET="all", trials=trials), tmp_path, 3, True, so_far.append)
    assert [(part["k"], part["n"], part["met"], part["ended"]) for part in so_far] == [
        (1, 1, False, False), (1, 2, False, False), (2, 3, False, False)
    ]  # fmt: skip
    assert (row["k"], row["n"], row["met"], row["seed"]) == (2, 4, False, 3)
    assert row["found"] == ["good: 2 of 2"]
    bad, broken = row["failed"]
    kept = tmp_path / "some" / "bad-1-2"
    assert bad == f"bad: 1/2: list index out of range (kept: {kept})"
    assert "the proof is broken" in broken
    assert (kept / "left").exists() and "IndexError" in (kept / "failure.txt").read_text()
    assert not (tmp_path / "some" / "good").exists()
    assert bad in capsys.readouterr().err


def test_a_proof_without_trials_is_not_met(tmp_path):
    nothing = SimpleNamespace(NAME="none", TARGET="all", trials=lambda *_: iter(()))
    assert command.judge(nothing, tmp_path, 0, False, print)["met"] is False


def test_a_check_that_looks_at_sizes_alone_is_found_out(tmp_path, monkeypatch):
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    path = checkpoint / "file"
    path.write_bytes(bytes(range(100)))
    monkeypatch.setattr(damage, "damage", lambda at: None if path.exists() and path.stat().st_size == 100 else "cut")
    changes = list(damage.broken(path.read_bytes(), random.Random(0), 10, 100))
    trials = [attempt(tmp_path, "damage", what, partial(damage.is_found, checkpoint, path, to)) for what, to in changes]
    assert [trial.ok for trial in trials] == [True] * 11 + [False] * 100
    assert path.read_bytes() == bytes(range(100))


def test_a_save_that_drops_what_was_before_it_is_ready_is_found_out(tmp_path, monkeypatch):
    monkeypatch.setattr(inject, "on_faulty_disk", careless_save.on_faulty_disk)
    settings = overrides(shared_store(tmp_path), tmp_path / "run", *inject.SAVES)
    work = partial(inject.survives, compiled(tmp_path), settings, 120, CRASH, Outcome([], ""), [])
    trial = attempt(tmp_path, "inject", "careless", work)
    assert not trial.ok
    assert "no checkpoint is valid" in trial.note
