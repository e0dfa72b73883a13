"""Validation while training: the right numbers on fixed held-out pairs, and nothing that is learned changes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_store
from in_process import run_here, tiny_fields
from safetensors.torch import load_file
from training import ENVIRONMENT

from fashionbert_fast import FashionBertForPreTraining
from fashionbert_fast.data.config import DataConfig
from fashionbert_fast.data.pairs import PairDataset
from fashionbert_fast.data.titles import TokenizedTitles
from fashionbert_fast.data.tokenizer import load_tokenizer, train_wordpiece
from fashionbert_fast.engine import validation
from fashionbert_fast.engine.checkpointing.resume import _logged_state
from fashionbert_fast.engine.checkpointing.saver import load_train_state
from fashionbert_fast.engine.reporting import plots
from fashionbert_fast.engine.reporting.metrics import read_metrics
from fashionbert_fast.engine.validation import HeldOutPairs
from fashionbert_fast.errors import InputError
from fashionbert_fast.features.store import FeatureStore
from fashionbert_fast.model.config import TASKS
from fashionbert_fast.run_directory import best_step, list_checkpoints, resolve_model_dir

KEPT = "validation.keep_best=alignment_accuracy"


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return write_store(tmp_path_factory.mktemp("stores") / "store", products=200)  # 25 of them held out


# The pairs -----------------------------------------------------------------------------------------------------------
def _held_out(store_and_titles, most: int = 1000, rank: int = 0, world_size: int = 1, **pairing) -> HeldOutPairs:
    store, titles = store_and_titles
    training = PairDataset(
        store, titles, store.rows("train"), DataConfig(**pairing), seed=3, micro_batch_size=4, rank=rank,
        world_size=world_size, steps=10,
    )  # fmt: skip
    return HeldOutPairs(training, store.rows("validation"), most)


def test_each_held_out_product_is_in_a_match_and_in_a_mismatch(store_and_titles):
    store, _ = store_and_titles
    for way, epochs in (("coin", 0), ("both", 5)):
        fixed = _held_out(store_and_titles, pairs=way, random_negative_epochs=epochs).fixed
        for is_match in (True, False):
            titles = fixed.text_rows[fixed.is_match == is_match]
            assert np.array_equal(np.sort(titles), store.rows("validation"))
        assert np.array_equal(fixed.is_match, fixed.text_rows == fixed.image_rows)
        categories = np.asarray(store.categories)
        assert np.array_equal(categories[fixed.text_rows], categories[fixed.image_rows])  # negatives: category


def test_twins_are_no_mismatch(tmp_path):
    """Of four held-out products three share a title: a mismatch is with the fourth, or with none."""
    store = FeatureStore.open(write_store(tmp_path / "store", products=32))
    rows = store.rows("validation")
    store._twin_N = np.arange(len(store))
    store._twin_N[rows[:3]] = 0
    store.categories[:] = ["one"] * len(store)
    train_wordpiece(store.titles, 300, tmp_path / "tokenizer")
    titles = TokenizedTitles(store.titles, load_tokenizer(tmp_path / "tokenizer"), 16)
    fixed = _held_out((store, titles)).fixed
    mismatch = ~fixed.is_match
    assert mismatch.sum() == 4
    assert (store.twin_N[fixed.text_rows[mismatch]] != store.twin_N[fixed.image_rows[mismatch]]).all()


def _pairs_of(batches) -> list[tuple]:
    """Each pair that counts, as (masked title, its labels, masked patches, label)."""
    pairs = []
    for batch in batches:
        inputs, targets = batch.inputs, batch.targets
        for b in (targets.tia_label_B >= 0).nonzero().flatten().tolist():
            first, last = inputs.cu_seqlens_S1[b].item(), inputs.cu_seqlens_S1[b + 1].item()
            words = inputs.input_id_N[(inputs.text_row_N >= first) & (inputs.text_row_N < last)]
            predicted = (targets.mlm_row_M >= first) & (targets.mlm_row_M < last) & (targets.mlm_label_M >= 0)
            pairs.append((words.tolist(), targets.mlm_label_M[predicted].tolist(), inputs.patch_mask_BP[b].tolist(),
                          targets.tia_label_B[b].item()))  # fmt: skip
    return pairs


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_share_the_same_pairs(store_and_titles, world_size):
    """23 pairs: the last batch of 2, 3 or 7 ranks x 4 is uneven, and leaves ranks without a pair of their own."""
    whole = _held_out(store_and_titles, 23)
    parts = [_held_out(store_and_titles, 23, rank, world_size) for rank in range(world_size)]
    assert len({len(part) for part in parts}) == 1  # as many forwards on every rank
    shared = [_pairs_of(part[i] for part in parts) for i in range(len(parts[0]))]
    assert [pair for batch in shared for pair in batch] == _pairs_of(whole[i] for i in range(len(whole)))
    counts = sum(part[i].targets.counts_T for part in parts for i in range(len(part)))
    assert torch.equal(counts, sum(whole[i].targets.counts_T for i in range(len(whole)))) and counts[1] == 23
    for rows in (
        lambda batch: (batch.targets.mlm_label_M >= 0).sum(),
        lambda batch: len(batch.targets.mpm_row_K),
    ):  # losses as well
        assert sum(rows(part[i]) for part in parts for i in range(len(part))) == sum(
            rows(whole[i]) for i in range(len(whole))
        )
    assert all(len(part[i].targets.tia_label_B) > 0 for part in parts for i in range(len(part)))


def test_a_split_smaller_than_a_global_batch(store_and_titles):
    store, titles = store_and_titles
    training = PairDataset(store, titles, store.rows("train"), DataConfig(), micro_batch_size=32, steps=1)
    held_out = HeldOutPairs(training, store.rows("validation")[:3], 1000)
    assert len(held_out) == 1 and held_out[0].targets.counts_T[1] == held_out.pairs == 6


# A run ---------------------------------------------------------------------------------------------------------------
def _weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(resolve_model_dir(run) / "model.safetensors")


DROPOUT = ["model.hidden_dropout=0.1", "model.attention_dropout=0.1", "model.patch_dropout=0.1"]
OPTIONS = {
    "loss": [*DROPOUT, "train.log_every=4"],
    "min_norm": [*DROPOUT, "train.log_every=4", "weighting.method=min_norm", "train.gradient_accumulation_steps=2",
                 "train.precision=bf16"],
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_validation_changes_nothing_that_is_learned(store, tmp_path, monkeypatch, name):
    without = run_here(store, tmp_path / "without", *OPTIONS[name], "validation.every=0")
    original = validation.measure

    def watched(run, held_out):
        generator = torch.get_rng_state()
        result = original(run, held_out)
        assert torch.equal(generator, torch.get_rng_state()) and run.engine.module.training
        return result

    monkeypatch.setattr(validation, "measure", watched)
    every = ["validation.every=1", "validation.keep_best=mlm"]  # many checkpoints as well
    validated = run_here(store, tmp_path / "with", *OPTIONS[name], *every)
    a, b = _weights(without), _weights(validated)
    assert all(torch.equal(a[name], b[name]) for name in a)
    plain = {record["step"]: record for record in read_metrics(without)}
    assert sorted(plain) == [4, 8] and not any("validation" in record for record in plain.values())
    records = read_metrics(validated)
    assert [record["step"] for record in records] == list(range(1, 9))
    for record in records:
        assert set(record) == {*plain[4], "validation"}
        if record["step"] in plain:
            for key in ("losses", "weights", "lr", "grad_norm"):
                assert record[key] == plain[record["step"]][key], key


@pytest.fixture(scope="module")
def run(store, tmp_path_factory) -> Path:
    """10 steps, validated at 4, 8 and 10 on 30 pairs, five of them in the last batch; weighting.preference uneven."""
    options = ["train.steps=10", "train.log_every=5", "validation.every=4", "validation.pairs=29",
               "weighting.preference=[0.5,1,2]", "train.lr=1e-2", *DROPOUT]  # fmt: skip
    return run_here(store, tmp_path_factory.mktemp("runs") / "run", *options)


def test_every_so_many_steps_and_at_the_last(run):
    records = read_metrics(run)
    assert [record["step"] for record in records] == [4, 5, 8, 10]
    assert [record["step"] for record in records if "validation" in record] == [4, 8, 10]


def test_the_numbers_are_the_models_on_all_pairs_at_once(run, store):
    """One forward of the saved model in place of many of the engine's."""
    opened = FeatureStore.open(store)
    titles = TokenizedTitles(opened.titles, load_tokenizer(resolve_model_dir(run)), 64)
    training = PairDataset(opened, titles, opened.rows("train"), DataConfig(), micro_batch_size=8, steps=1)
    batch = HeldOutPairs(_with_batches_of(29, training), opened.rows("validation"), 29)[0]
    with torch.no_grad():
        output = FashionBertForPreTraining.from_pretrained(resolve_model_dir(run)).eval()(batch)
    measured = read_metrics(run)[-1]["validation"]
    assert measured["pairs"] == 29
    assert list(measured["losses"].values()) == pytest.approx(output.losses_T.tolist(), rel=1e-5)
    assert list(measured["losses"]) == list(TASKS)
    mlm, tia, mpm = measured["losses"].values()
    assert measured["loss"] == pytest.approx(0.5 * mlm + tia + 2 * mpm)
    right = (output.logits_B2[:, 1] > output.logits_B2[:, 0]) == batch.targets.tia_label_B.bool()
    assert measured["alignment_accuracy"] == pytest.approx(right.float().mean().item())
    assert len({record["validation"]["losses"]["mlm"] for record in read_metrics(run) if "validation" in record}) == 3


def _with_batches_of(size: int, training: PairDataset) -> PairDataset:
    return PairDataset(training.store, training.titles, training.rows, training.config, micro_batch_size=size, steps=1)


def test_tensorboard_has_the_held_out_curves(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    last = read_metrics(run)[-1]["validation"]
    shown = {f"validation/losses/{task}": last["losses"][task] for task in TASKS} | {
        f"validation/{name}": last[name] for name in ("loss", "alignment_accuracy")
    }
    for tag, value in shown.items():
        assert [event.step for event in board.Scalars(tag)] == [4, 8, 10]
        assert board.Scalars(tag)[-1].value == pytest.approx(value)
    assert [event.step for event in board.Scalars("losses/tia")] == [4, 5, 8, 10]  # what was there before


def test_plots_have_the_held_out_points(run, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots.plt, "close", drawn.append)
    records = read_metrics(run)
    plots.plot_losses(records, tmp_path / "losses.png")
    axes = drawn[0].axes
    assert len(axes) == 4
    for axis, task in zip(axes, TASKS, strict=False):
        points = next(line for line in axis.lines if line.get_label() == "held out")
        assert points.get_xdata().tolist() == [4, 8, 10]
        expected = [record["validation"]["losses"][task] for record in records if "validation" in record]
        assert points.get_ydata().tolist() == expected
    assert axes[3].lines[0].get_ydata()[-1] == records[-1]["validation"]["alignment_accuracy"]
    plots.plot_losses([{k: v for k, v in r.items() if k != "validation"} for r in records], tmp_path / "without.png")
    assert len(drawn[1].axes) == 3
    monkeypatch.undo()
    for figure in drawn:
        plots.plt.close(figure)


def _shown(accuracy: float) -> dict:
    return {"losses": dict.fromkeys(TASKS, 1.0), "loss": 1 - accuracy, "alignment_accuracy": accuracy, "pairs": 2}


@pytest.fixture
def scripted(monkeypatch):
    """Validations give these accuracies, one after another."""

    def script(*accuracies: float) -> None:
        left = iter(accuracies)
        monkeypatch.setattr(validation, "measure", lambda run, held_out: _shown(next(left)))

    return script


def test_time_spent_validating_is_not_counted(store, tmp_path, monkeypatch):
    def slow(run, held_out):
        time.sleep(1.5)
        return _shown(0.5)

    monkeypatch.setattr(validation, "measure", slow)
    run = run_here(store, tmp_path / "run", "validation.every=4", "train.steps=6")
    assert read_metrics(run)[-1]["samples_per_s"] > 2 * 8 / 1.5


# The best checkpoint -------------------------------------------------------------------------------------------------
EVERY_STEP = ["validation.every=1", "train.checkpoint_every=0", "train.keep_checkpoints=1"]


def _steps(run: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in list_checkpoints(run)]


def test_the_best_checkpoint_is_kept_beside_the_newest(store, tmp_path, scripted):
    scripted(0.5, 0.7, 0.6, 0.7, 0.4, 0.2)
    run = run_here(store, tmp_path / "run", *EVERY_STEP, KEPT, "train.steps=6")
    assert _steps(run) == [2, 6]  # the first of equals
    best = run / "checkpoints" / "best"
    assert best_step(run) == 2 and best.is_symlink() and not os.path.isabs(os.readlink(best))
    moved = tmp_path / "moved"
    run.rename(moved)
    assert resolve_model_dir(moved / "checkpoints" / "best").resolve().parent.name == "step-00000002"
    assert resolve_model_dir(moved).parent.name == "step-00000006"  # a run's directory is still its newest


def test_of_losses_the_lowest_is_best(store, tmp_path, monkeypatch):
    values = iter([float("nan"), 0.3, 0.9, 0.5])

    def measure(run, held_out):
        value = next(values)
        return {"losses": {"mlm": 1.0, "tia": value, "mpm": 1.0}, "loss": 1.0, "alignment_accuracy": 0.5, "pairs": 2}

    monkeypatch.setattr(validation, "measure", measure)
    run = run_here(store, tmp_path / "run", *EVERY_STEP, "validation.keep_best=tia", "train.steps=4")
    assert (best_step(run), _steps(run)) == (2, [2, 4])


def test_the_best_so_far_survives_a_resume(store, tmp_path, scripted):
    options = [*EVERY_STEP, KEPT, "train.keep_checkpoints=2"]
    scripted(0.5, 0.8, 0.6, 0.6)
    run = run_here(store, tmp_path / "run", *options, "train.steps=4")
    shutil.copytree(run, tmp_path / "copied")  # follows the link: best becomes a directory of its own
    for directory in (run, tmp_path / "copied"):
        shutil.rmtree(directory / "checkpoints" / "step-00000004")  # as if killed after step 3
    scripted(0.7, 0.75)
    run_here(store, run, *options, "train.steps=4", resume=True)
    assert (best_step(run), _steps(run)) == (2, [2, 4])
    scripted(0.7, 0.9)
    run_here(store, tmp_path / "copied", *options, "train.steps=4", resume=True)
    assert best_step(tmp_path / "copied") == 4
    assert (tmp_path / "copied" / "checkpoints" / "best").is_symlink()


def test_another_metric_on_resume_starts_from_the_checkpoint_that_is_there(store, tmp_path, scripted):
    scripted(0.5, 0.8, 0.6, 0.7)
    run = run_here(store, tmp_path / "run", *EVERY_STEP, KEPT, "train.steps=4", "train.keep_checkpoints=9")
    shutil.copytree(run, tmp_path / "unmarked", symlinks=True)
    (tmp_path / "unmarked" / "checkpoints" / "best").unlink()
    for directory, best in ((run, 2), (tmp_path / "unmarked", 5)):  # without a best, whatever comes next is the best
        scripted(0.75)
        run_here(store, directory, *EVERY_STEP, "validation.keep_best=loss", "train.steps=5", resume=True)
        assert best_step(directory) == best


def test_a_checkpoint_knows_the_best_so_far_and_the_log_does_for_older_ones(store, tmp_path, scripted):
    scripted(0.5, 0.8, 0.6, 0.7)
    run = run_here(store, tmp_path / "run", *EVERY_STEP, KEPT, "train.steps=4", "train.keep_checkpoints=9")
    saved, logged = load_train_state(list_checkpoints(run)[-1]), _logged_state(run, 4)
    for state in (saved, logged):
        assert (state.best_step, state.best["alignment_accuracy"], state.stale, state.skipped) == (2, 0.8, 2, 0)
    assert _logged_state(run, 1).best_step is None  # its checkpoint lies ahead: it will come again
    (run / "checkpoints" / "best").unlink()
    assert _logged_state(run, 4).best_step is None


# Early stop ----------------------------------------------------------------------------------------------------------
def test_early_stop_ends_the_run_cleanly_and_for_good(store, tmp_path, scripted, capsys):
    options = [*EVERY_STEP, KEPT, "validation.patience=2", "train.steps=9"]
    scripted(0.5, 0.8, 0.6, 0.8, 0.9)
    run = run_here(store, tmp_path / "run", *options)
    assert _steps(run) == [2, 4] and read_metrics(run)[-1]["step"] == 4
    assert "stopped early at step 4 of 9: 2 validations without a better alignment_accuracy than 0.8000 of step 2" in (
        capsys.readouterr().out
    )
    assert (run / "losses.png").exists()
    before = _weights(run)
    run_here(store, run, *options, resume=True)
    assert "stopped early at step 4 of 9" in capsys.readouterr().out
    assert read_metrics(run)[-1]["step"] == 4 and all(torch.equal(before[n], w) for n, w in _weights(run).items())
    scripted(0.7, 0.7, 0.7, 0.7, 0.7)
    run_here(store, run, *options, "validation.patience=0", resume=True)  # on request, it goes on
    assert _steps(run) == [2, 9]


# Where there is nothing to validate on -------------------------------------------------------------------------------
@pytest.mark.parametrize(("split", "held_out"), [("train", False), ("all", True)])
def test_without_held_out_products_it_is_skipped_or_refused(store, tmp_path, capsys, monkeypatch, split, held_out):
    if not held_out:
        rows = FeatureStore.rows
        empty = {"validation": 0}  # how many rows of a split
        monkeypatch.setattr(FeatureStore, "rows", lambda self, name=None: rows(self, name)[: empty.get(name)])
    run = run_here(store, tmp_path / "run", f"data.split={split}", "validation.every=2")
    said = [line for line in capsys.readouterr().out.splitlines() if "no validation" in line]
    assert len(said) == 1 and ("--holdout" in said[0] or "data.split all" in said[0])
    assert not any("validation" in record for record in read_metrics(run))
    with pytest.raises(InputError, match=r"validation\.keep_best") as caught:
        run_here(store, tmp_path / "refused", f"data.split={split}", KEPT)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "refused" / "metrics.jsonl").exists()  # the directory is free for the corrected command


# Many processes ------------------------------------------------------------------------------------------------------
def test_two_processes_at_zero_3_with_uneven_shares(store, tmp_path):
    """Weights of 128 x 128 and more, so that stage 3 does partition them; 25 pairs of 2 x 4, so that one rank ends
    without a pair. The worker checks that training is bit for bit what it is without validation."""
    sizes = ["model.hidden_size=128", "model.intermediate_size=256", "validation.pairs=25", "validation.every=2",
             "train.steps=4"]  # fmt: skip
    one = run_here(store, tmp_path / "one", *sizes)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    fields = tiny_fields(store, *sizes, "train.micro_batch_size=4")
    worker = [str(Path(__file__).parent / "validation_worker.py"), str(tmp_path), *fields]
    done = subprocess.run([*launcher, *worker], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "same weights: True" in done.stdout
    for two, alone in zip(read_metrics(tmp_path / "validated"), read_metrics(one), strict=True):
        assert two["validation"]["losses"] == pytest.approx(alone["validation"]["losses"], abs=1e-5)
        assert two["validation"]["alignment_accuracy"] == alone["validation"]["alignment_accuracy"]
        assert two["validation"]["pairs"] == 25
