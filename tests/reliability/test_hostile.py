"""The hostile corpus: a sample of it is harmless, and a command that is not would be found out."""

from __future__ import annotations

import pickle

import pytest
from PIL import Image

from tests.reliability import corpus, hostile
from tests.reliability.hostile import Cost, judge


def test_a_sample_is_harmless(tmp_path, monkeypatch):
    """Of each kind, and of each command."""
    chosen = ("photo: eps named jpg", "photo: pipe", "csv: paths out", "csv: an image folder", "jsonl: half",
              "parquet: rows without end", "store: manifest a pipe", "store: products that expand",
              "store: features cut", "checkpoint: manifest missing", "checkpoint: a link, sealed",
              "checkpoint: weights pickled", "model: 10^5 layers", "model: index of a path out",
              "model: header of sizes", "model: tokenizer of another", "yaml: laughs", "yaml: an object",
              "yaml: the environment", "yaml: a device")  # fmt: skip
    monkeypatch.setattr(hostile, "ALL", [artefact for artefact in hostile.ALL if artefact.name.startswith(chosen)])
    trials = list(hostile.trials(tmp_path, 0, False))
    assert len(trials) == len(chosen) == 20
    assert [trial for trial in trials if not trial.ok] == []


def test_there_are_eighty_of_all_kinds():
    names = [artefact.name for artefact in corpus.ARTEFACTS]
    assert len(names) == len(set(names)) >= 80
    kinds = {"photo", "csv", "jsonl", "parquet", "store", "checkpoint", "model", "yaml"}
    assert kinds <= {name.split(":")[0] for name in names}


GOOD, LINE = Cost(100, 1.0), "fashionbert inspect: error: x: is damaged; make it again\n"
BAD = {
    "a traceback": (1, "Traceback (most recent call last):\n  ...\nKeyError: 'a'\n", GOOD),
    "a line after a traceback": (2, "Traceback (most recent call last):\n" + LINE, GOOD),
    "killed": (-6, "", None),
    "another status": (1, LINE, GOOD),
    "nothing said": (2, "", GOOD),
    "two lines": (2, LINE + LINE, GOOD),
    "more after the line": (2, LINE + "and more\n", GOOD),
    "a line without end": (2, LINE.strip() + "x" * 2000, GOOD),
    "memory": (2, LINE, Cost(100 + 512 * 2**20, 1.0)),
    "time": (2, LINE, Cost(100, 5.0)),
}


@pytest.mark.parametrize("how", BAD)
def test_a_command_that_is_not_harmless_is_found_out(how):
    judge(2, 2, LINE, GOOD, GOOD)
    judge(0, 0, "done\n", GOOD, GOOD)
    with pytest.raises(AssertionError):
        judge(2, *BAD[how], GOOD)


def test_a_trap_that_was_touched_is_found_out(tmp_path):
    out = tmp_path / "out"
    out.mkdir()

    def trap(name: str) -> corpus.Trap:
        made = corpus.Trap.set(tmp_path / name)
        made.check("done", tmp_path)
        return made

    ran = trap("ran")
    pickle.loads(pickle.dumps(corpus.Runs(ran.canary)))  # what each pickled artefact would do
    with pytest.raises(AssertionError, match="code ran"):
        ran.check("done", tmp_path)
    written = trap("written")
    (written.folder / "more").touch()
    with pytest.raises(AssertionError, match="outside there is"):
        written.check("done", tmp_path)
    with pytest.raises(AssertionError, match="a secret was told"):
        trap("told").check(f"x: {corpus.SECRET} is no file", tmp_path)
    copied = trap("copied")
    (out / "vocab.txt").write_text(corpus.SECRET)
    with pytest.raises(AssertionError, match=r"a secret came into vocab\.txt"):
        copied.check("done", tmp_path)


def test_a_photo_that_was_taken_from_outside_is_found_out(tmp_path):
    from fashionbert_fast.features.prepare import prepare

    trap = corpus.Trap.set(tmp_path / "outside")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "images" / "1.jpg")
    (tmp_path / "shop.csv").write_text("id,title,image\n1,Hat,images/1.jpg\n2,Cap,outside/secret.jpg\n")
    options = {"encoder": "random:0:16", "grid": 2, "patch_pixels": 8, "device": "cpu"}
    prepare(tmp_path / "shop.csv", tmp_path / "out" / "store", **options)
    with pytest.raises(AssertionError, match="a photo outside was taken"):
        trap.check("done", tmp_path)
