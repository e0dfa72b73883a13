"""Scoring in parts: any number of ranks gives the same bits, who was killed goes on, and nothing stale is used.

On the small shop of tests/shop.py: 12 products, 144 pairs, in parts of 48.
"""

from __future__ import annotations

import json
import shutil
import signal

import numpy as np
import pyarrow.parquet as pq
import pytest
from training import fashionbert, on_two_processes

from fashionbert_fast.evaluation.ranking.choice import NAMES
from fashionbert_fast.inference.scorer import PairScorer
from fashionbert_fast.inference.shards import Parts, forget
from fashionbert_fast.objectives.pretraining import FashionBertForPreTraining

SMALL = ("--split", "all", "--batch-size", "3", "--device", "cpu", "--protocol", "full", "--recognition", "both",
         "--finetune-epochs", "1", "--finetune-products", "10")  # fmt: skip


@pytest.fixture
def words(shop, tmp_path):
    """The command's words; it writes tmp_path/found.json and found.parquet."""
    out = ("--json", str(tmp_path / "found.json"), "--scores", str(tmp_path / "found.parquet"))
    paths = ("--checkpoint", str(shop / "runs" / "shop"), "--data", str(shop / "stores" / "shop"))
    return ["evaluate", *paths, *out, *SMALL]


def found(folder):
    """What was written, but how fast it was had; nothing else may be left there."""
    assert sorted(path.name for path in folder.iterdir()) == ["found.json", "found.parquet"]
    result = json.loads((folder / "found.json").read_text())
    work = result.pop("throughput")
    return result, pq.read_table(folder / "found.parquet"), work


def test_two_ranks_give_the_same_bits_as_one_and_the_first_writes(words, tmp_path):
    words += ["--score", "all", "--shortlist", "4"]
    done = fashionbert(*words)
    assert done.returncode == 0, done.stderr
    one, scores, work = found(tmp_path)
    # 12 titles and 12 photos alone beside the pairs, and the 16 pairs of the 4 held out
    assert (work["sequences"], work["ranks"]) == (144 + 24 + 16, 1) and set(one["scores"]) == set(NAMES)
    done = on_two_processes(*words)
    two, again, work = found(tmp_path)
    assert (work["sequences"], work["ranks"]) == (184, 2)
    assert done.stdout.count("protocol full") == 1
    assert two == one and again.equals(scores)


class Killed(BaseException):
    """Ends the process where it stands."""


def kill_after(monkeypatch, batches, forward="alignment_logits"):
    """Let the model be cut off after so many forward passes; how many it has done."""
    asked, passed = [], getattr(FashionBertForPreTraining, forward)

    def counted(self, sequences):
        if len(asked) == batches:
            raise Killed
        asked.append(len(sequences.cu_seqlens_S1) - 1)
        return passed(self, sequences)

    monkeypatch.setattr(FashionBertForPreTraining, forward, counted)
    return asked


def test_a_killed_evaluation_goes_on_and_finds_the_same(words, tmp_path, monkeypatch):
    assert fashionbert(*words).returncode == 0
    whole, scores, work = found(tmp_path)
    lengths = work["tokens"] / work["pairs"]  # 4 patches and a title of 4 to 6 tokens
    assert 8 <= lengths <= 10 and work["tokens_per_s"] == pytest.approx(work["pairs_per_s"] * lengths)
    for path in tmp_path.iterdir():
        path.unlink()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 44)  # five parts of 8 batches, and half of the sixth
        fashionbert(*words)
    assert [path.name for path in tmp_path.iterdir()] == [".found.json.parts"]
    asked = kill_after(monkeypatch, 1000)
    assert fashionbert(*words).returncode == 0
    again, same, work = found(tmp_path)
    assert sum(asked) == work["pairs"] == 24
    assert again == whole and same.equals(scores)


def test_killed_while_it_embeds_it_goes_on_and_finds_the_same(words, tmp_path, monkeypatch):
    words += ["--score", "similarity", "--batch-size", "1", "--recognition", "none"]
    assert fashionbert(*words).returncode == 0
    whole, scores, _ = found(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 10, "vectors")  # a part of 8 titles, and half of the other
        fashionbert(*words)
    asked = kill_after(monkeypatch, 1000, "vectors")
    assert fashionbert(*words).returncode == 0
    again, same, work = found(tmp_path)
    assert sum(asked) == work["sequences"] == 4 + 12
    assert again == whole and same.equals(scores)


@pytest.mark.parametrize("change", ["lists", "precision", "batch size", "weights", "features"])
def test_nothing_stale_is_used(shop, words, tmp_path, monkeypatch, change):
    copy = tmp_path.parent / f"{tmp_path.name}-shop"
    shutil.copytree(shop, copy)
    words = [word.replace(str(shop), str(copy)) for word in words]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 40)
        fashionbert(*words)
    if change == "lists":
        words += ["--protocol", "fashionbert", "--candidates", "12", "--queries", "11"]
    elif change == "precision":
        words += ["--precision", "bf16"]
    elif change == "batch size":
        words += ["--batch-size", "4"]
    elif change == "weights":
        shutil.copytree(copy / "runs" / "shop", copy / "runs" / "other")
        other = copy / "runs" / "other" / "checkpoints" / "step-00000001" / "model"
        model = FashionBertForPreTraining.from_pretrained(other)
        model.tia_head.classifier.weight.data.neg_()
        model.save_pretrained(other)  # nothing else of it is another
        words[words.index("--checkpoint") + 1] = str(other)
    else:
        features = copy / "stores" / "shop" / "features.bin"
        features.write_bytes(features.read_bytes())
    asked = kill_after(monkeypatch, 1000)
    done = fashionbert(*words)
    assert done.returncode == 0, done.stderr
    assert sum(asked) == (143 if change == "lists" else 144)
    assert not (tmp_path / ".found.json.parts").exists()


def test_a_part_that_is_damaged_is_done_again(tmp_path):
    parts, asked = Parts(tmp_path / "parts", "identity"), []

    def work(rows):
        asked.append((rows.start, rows.stop))
        return np.arange(rows.start, rows.stop) / 7

    def run():
        asked.clear()
        return parts.run(b"rows", np.empty(0), 10, 4, work, "")

    whole = run()
    assert asked == [(0, 4), (4, 8), (8, 10)] and whole.tolist() == (np.arange(10) / 7).tolist()
    assert (run() == whole).all() and asked == []
    (folder,) = (tmp_path / "parts" / "identity").iterdir()
    (folder / "4.npy").write_bytes((folder / "4.npy").read_bytes()[:-3])
    np.save(folder / "8.npy", np.zeros(4))
    assert (run() == whole).all() and asked == [(4, 8), (8, 10)]
    assert Parts(tmp_path / "parts", "another").folder is not None and not folder.exists()
    forget(tmp_path / "parts")
    assert not (tmp_path / "parts").exists()


def test_an_interrupt_says_how_to_go_on(words, monkeypatch):
    def interrupted(self, text, image, kind):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(PairScorer, "score", interrupted)
    done = fashionbert(*words)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "found.json.parts; the same command goes on from there" in done.stderr
