"""Checkpoints that are damaged or come from a stranger: nothing of them runs, nothing good is lost."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from training import ENVIRONMENT

from benchmarks.steps.weights import master_weights
from fashionbert_fast import FashionBertForPreTraining, FashionBertProcessor
from fashionbert_fast.engine.checkpointing import saver as saver_module
from fashionbert_fast.engine.checkpointing.resume import resume_run
from fashionbert_fast.engine.checkpointing.saver import Saver, load_checkpoint, newest_whole, save_checkpoint
from fashionbert_fast.engine.step import train_step
from fashionbert_fast.engine.train import train
from fashionbert_fast.errors import InputError
from fashionbert_fast.files import SEAL, seal
from fashionbert_fast.run_directory import MANIFEST, TRAINING, damage, list_checkpoints, resolve_model_dir


class _Runs:
    """Runs a command where it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


def _resealed(checkpoint: Path) -> None:
    """The manifest over the files as they are: what whoever changes them can always write."""
    files = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            content = path.read_bytes()
            files[str(path.relative_to(checkpoint))] = {
                "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()
            }  # fmt: skip
    manifest = json.loads((checkpoint / MANIFEST).read_text()) | {"files": files}
    del manifest[SEAL]
    (checkpoint / MANIFEST).write_text(json.dumps(seal(manifest)))


def _changed(checkpoint: Path, **fields) -> None:
    """Fields of the manifest edited, without its seal."""
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    (checkpoint / MANIFEST).write_text(json.dumps(manifest | fields))


@pytest.fixture
def saved(build_run):
    """Builds a run of two saved steps: the run, and its checkpoints, oldest first."""

    def make(*overrides: str):
        run = build_run("train.keep_checkpoints=5", *overrides)
        for step in (1, 2):
            train_step(run, run.dataset[step - 1], step)
            save_checkpoint(run.engine, run.directory, step, run.tokenizer_dir, run.config.to_yaml(), run.config.train)
        return run, list_checkpoints(run.directory)

    return make


@pytest.mark.parametrize("stage", [1, 3])
def test_no_code_of_a_checkpoint_runs(saved, tmp_path, stage):
    """Each of its files in turn is an object that would run something, by pickle and by torch."""
    run, (_, newest) = saved(f"train.zero_stage={stage}")
    assert load_checkpoint(run.engine, newest) == 2
    files = sorted(path for path in newest.rglob("*") if path.is_file() and path.name != MANIFEST)
    assert len(files) > 6
    for number, file in enumerate(files):
        whole, proof = file.read_bytes(), tmp_path / f"ran-{number}"
        for save in (lambda file, proof: file.write_bytes(pickle.dumps(_Runs(proof))),
                     lambda file, proof: torch.save({"hostile": _Runs(proof)}, file)):  # fmt: skip
            save(file, proof)
            _resealed(newest)
            assert damage(newest) is None
            if file.parent.name == "state":
                with pytest.raises(InputError, match="its state cannot be loaded"):
                    load_checkpoint(run.engine, newest)
            elif file.parent.name == "model":
                with contextlib.suppress(InputError):  # what none needs is not read
                    FashionBertForPreTraining.from_pretrained(newest)
                with contextlib.suppress(InputError):
                    FashionBertProcessor.from_pretrained(newest)
            else:
                with pytest.raises(InputError):
                    resume_run(run)
            assert not proof.exists()
        file.write_bytes(whole)
    _resealed(newest)
    assert load_checkpoint(run.engine, newest) == 2


def _training(checkpoint: Path, **fields) -> None:
    path = checkpoint / "state" / TRAINING
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def _tensors(checkpoint: Path, change) -> None:
    """The rank's tensors and metadata after ``change``."""
    path = checkpoint / "state" / "rank-00000.safetensors"
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata())
    change(tensors, metadata)
    save_file(tensors, path, metadata=metadata)


def _pieces(metadata: dict[str, str], **fields) -> None:
    metadata["pieces"] = json.dumps(json.loads(metadata["pieces"]) | fields)


NAME, ONE = "encoder.layers.0.qkv.weight", torch.tensor(1.0)
STATES = {  # what is done to a checkpoint's state, whose hashes are then right
    "a schedule of words": lambda c: _training(c, schedule="far"),
    "no groups": lambda c: _training(c, groups=[]),
    "not an object": lambda c: (c / "state" / TRAINING).write_text("[]"),
    "nested deeply": lambda c: (c / "state" / TRAINING).write_text("[" * 100_000),
    "a piece missing": lambda c: _tensors(c, lambda tensors, _: tensors.pop(f"master/{NAME}")),
    "a moment missing": lambda c: _tensors(c, lambda tensors, _: tensors.pop(f"exp_avg/{NAME}")),
    "a piece too short": lambda c: _tensors(c, lambda tensors, _: tensors.update({f"exp_avg/{NAME}": torch.zeros(5)})),
    "a number for a piece": lambda c: _tensors(c, lambda tensors, _: tensors.update({f"exp_avg/{NAME}": ONE})),
    "no metadata": lambda c: _tensors(c, lambda _, metadata: metadata.clear()),
    "starts of words": lambda c: _tensors(c, lambda _, metadata: _pieces(metadata, starts={NAME: "far"})),
    "no starts": lambda c: _tensors(c, lambda _, metadata: _pieces(metadata, starts={})),
    "numbers of words": lambda c: _tensors(c, lambda _, metadata: _pieces(metadata, numbers={NAME: "far"})),
    "pieces nested deeply": lambda c: _tensors(c, lambda _, metadata: metadata.update(pieces="[" * 100_000)),
    "no rank": lambda c: (c / "state" / "rank-00000.safetensors").unlink(),
}  # fmt: skip


@pytest.mark.parametrize("how", STATES)
def test_a_state_that_is_sealed_and_no_state_is_one_line(saved, how):
    run, (_, newest) = saved()
    STATES[how](newest)
    _resealed(newest)
    with pytest.raises(InputError, match="state") as refused:
        load_checkpoint(run.engine, newest)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 700


def test_the_attack_of_these_tests_works_where_nobody_guards(tmp_path):
    torch.save(_Runs(tmp_path / "ran"), tmp_path / "file")
    torch.load(tmp_path / "file", weights_only=False)
    assert (tmp_path / "ran").exists()


MANIFESTS = {  # what is done to the newest checkpoint -> what is said of it
    "another step": (lambda c: _changed(c, step=1), "edited or is damaged"),
    "another step, sealed": (lambda c: _sealed_as(c, step=1), "is of step 1"),
    "no files": (lambda c: _sealed_as(c, files={}), "is not of this checkpoint"),
    "files of no kind": (lambda c: _sealed_as(c, files=["config.yaml"]), "cannot be read"),
    "a file outside": (lambda c: _sealed_as(c, files={"../../config.yaml": {"bytes": 1, "sha256": ""}}), "is missing"),
    "no step": (lambda c: _sealed_as(c, step=None), "cannot be read"),
    "not an object": (lambda c: (c / MANIFEST).write_text("[1]"), "cannot be read"),
    "nested deeply": (lambda c: (c / MANIFEST).write_text("[" * 100_000), "cannot be read"),
    "not UTF-8": (lambda c: (c / MANIFEST).write_bytes(b"\xff\xfe{}"), "cannot be read"),
    "without its seal": (lambda c: _unsealed(c), "older fashionbert_fast"),
    "a file more": (lambda c: (c / "state" / "more.pt").touch(), "more.pt is not of this checkpoint"),
    "a link": (lambda c: _linked(c / "config.yaml"), "config.yaml is a link"),
    "weights missing": (lambda c: _without(c, "model/model.safetensors"), "model.safetensors is missing"),
}  # fmt: skip


def _sealed_as(checkpoint: Path, **fields) -> None:
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    del manifest[SEAL]
    (checkpoint / MANIFEST).write_text(json.dumps(seal(manifest | fields)))


def _unsealed(checkpoint: Path) -> None:
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    del manifest[SEAL]
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))


def _linked(path: Path) -> None:
    elsewhere = path.parent.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def _without(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    _resealed(checkpoint)


@pytest.mark.parametrize("how", MANIFESTS)
def test_a_manifest_vouches_for_itself_and_for_no_less_than_a_checkpoint(saved, how):
    run, (older, newest) = saved()
    change, said = MANIFESTS[how]
    change(newest)
    found, complaints = newest_whole(run.directory)
    assert found == older
    assert len(complaints) == 1
    assert said in complaints[0]


def test_every_flipped_bit_and_cut_of_every_file_is_found(saved):
    """Manifest included; 3 random bits and 2 cuts a file."""
    _, (_, newest) = saved()
    assert damage(newest) is None
    draw = random.Random(0)
    for path in sorted(p for p in newest.rglob("*") if p.is_file()):
        whole = path.read_bytes()
        for _ in range(3):
            changed = bytearray(whole)
            changed[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
            path.write_bytes(changed)
            assert damage(newest) is not None, path
        for length in (0, draw.randrange(len(whole))):
            path.write_bytes(whole[:length])
            assert damage(newest) is not None, path
        path.unlink()
        found = damage(newest)
        # Without a manifest it is no checkpoint, and counts as none.
        assert found is not None, path
        path.write_bytes(whole)
    assert damage(newest) is None


def _started(*words: str) -> subprocess.CompletedProcess:
    """`fashionbert pretrain WORDS` in a process of its own: this one's process group has other runs."""
    command = [sys.executable, "-m", "fashionbert_fast", "pretrain", *words]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)


def test_damaged_checkpoints_are_set_aside_and_the_run_goes_on_with_what_is_whole(saved):
    run, (older, newest) = saved()
    _changed(newest, step=7)
    done = _started("--config", str(_config_of(run)), "train.keep_checkpoints=1", "--resume")
    assert done.returncode == 0, done.stderr
    assert f"passed over {newest}" in done.stdout
    assert f"resuming from {older}" in done.stdout
    checkpoints = run.directory / "checkpoints"
    assert (checkpoints / "damaged-step-00000002").is_dir()
    assert [path.name for path in list_checkpoints(run.directory)] == ["step-00000008"]


def test_a_run_with_no_whole_checkpoint_does_not_begin_anew_by_itself(saved):
    run, checkpoints = saved()
    for path in checkpoints:
        _changed(path, step=7)
    newest_whole(run.directory)  # they are set aside already, as at a second try
    done = _started("--config", str(_config_of(run)), "--resume")
    assert done.returncode == 2
    assert "none of its checkpoints is whole" in done.stderr
    assert done.stderr.count("\n") == 1
    assert len(list((run.directory / "checkpoints").glob("damaged-*"))) == 2


def test_what_is_set_aside_twice_keeps_both(saved):
    run, (_, newest) = saved()
    copy = run.directory / "copy"
    shutil.copytree(newest, copy)
    _changed(newest, step=7)
    newest_whole(run.directory)
    copy.rename(newest)
    _changed(newest, step=8)
    newest_whole(run.directory)
    names = {path.name for path in (run.directory / "checkpoints").glob("damaged-*")}
    assert names == {"damaged-step-00000002", "damaged-step-00000002.2"}


def test_resuming_what_holds_no_run_is_refused(store_path, tmp_path):
    output = f"train.output={tmp_path / 'nothing'}"
    done = _started("--config", "article", f"data.store={store_path}", output, "--resume")
    assert done.returncode == 2
    assert "holds no run to resume" in done.stderr


class _Disk:
    """One that is full while ``free`` is 0."""

    def __init__(self, monkeypatch) -> None:
        self.free, self.usage = 0, shutil.disk_usage
        monkeypatch.setattr(shutil, "disk_usage", lambda path: self.usage(path)._replace(free=self.free))


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(build_run, monkeypatch, capsys):
    run, disk = build_run("train.keep_checkpoints=1"), _Disk(monkeypatch)
    directory = run.directory / "checkpoints"

    def save(step: int) -> Path | None:
        return save_checkpoint(
            run.engine, run.directory, step, run.tokenizer_dir, run.config.to_yaml(), run.config.train
        )

    disk.free = 2**40
    assert save(1) == directory / "step-00000001"
    disk.free = 100_000
    assert save(2) is None
    assert "the checkpoint of step 2 is not written" in capsys.readouterr().out
    assert [path.name for path in directory.iterdir()] == ["step-00000001"]
    assert damage(directory / "step-00000001") is None
    disk.free = 2**40
    assert save(3) == directory / "step-00000003"
    assert [path.name for path in directory.iterdir()] == ["step-00000003"]


def _failing(error: Exception):
    def write(*_, **__):
        raise error

    return write


FAILURES = [OSError(28, "No space left on device"), OSError(5, "Input/output error"), SafetensorError("I/O error")]


@pytest.mark.parametrize("error", FAILURES, ids=str)
@pytest.mark.parametrize(
    "place", ["zero.state.Snapshot.write", "checkpointing.saver.copy_tokenizer", "checkpointing.saver._seal"]
)
def test_a_disk_that_fails_while_it_is_written_costs_a_checkpoint(build_run, monkeypatch, capsys, place, error):
    run = build_run("train.checkpoint_every=3")
    with monkeypatch.context() as broken:
        broken.setattr(f"fashionbert_fast.engine.{place}", _failing(error))
        saver = Saver(run.engine, run.directory, run.tokenizer_dir, run.config.to_yaml(), run.config.train)
        saver.begin(1)
        assert saver.finish() == " ".join(str(error).split())
    out = capsys.readouterr().out
    assert "the checkpoint of step 1 is not written: " in out and out.count("\n") == 1
    assert list((run.directory / "checkpoints").iterdir()) == []
    saver.begin(2)
    assert saver.finish() is None
    assert [path.name for path in list_checkpoints(run.directory)] == ["step-00000002"]


@pytest.mark.parametrize("place", ["_mark_best", "_drop_old"])
def test_a_disk_that_fails_afterwards_costs_no_checkpoint(build_run, monkeypatch, capsys, place):
    run = build_run()
    monkeypatch.setattr(saver_module, place, _failing(FAILURES[1]))
    saver = Saver(run.engine, run.directory, run.tokenizer_dir, run.config.to_yaml(), run.config.train)
    saver.begin(1, best=True)
    assert saver.finish() is None
    assert [path.name for path in list_checkpoints(run.directory)] == ["step-00000001"]
    assert "step-00000001 is written; what it replaces stays: [Errno 5]" in capsys.readouterr().out


def test_a_run_goes_on_where_a_checkpoint_is_not_written_and_ends_where_its_last_is_not(build_run, monkeypatch):
    run = build_run("train.checkpoint_every=2", "train.steps=6", "train.keep_checkpoints=1")
    seal = saver_module._seal

    def seal_some(directory: Path, step: int) -> None:
        if step in fails:
            raise OSError(28, "No space left on device")
        seal(directory, step)

    monkeypatch.setattr(saver_module, "_seal", seal_some)
    fails = {4}
    train(run, 0)
    assert [path.name for path in list_checkpoints(run.directory)] == ["step-00000006"]
    run = build_run("train.checkpoint_every=2", "train.steps=8")
    fails = {8}
    with pytest.raises(InputError, match=r"its last step, 8, is not saved: .*No space left"):
        train(run, 6)
    assert [path.name for path in list_checkpoints(run.directory)] == ["step-00000006"]


def test_a_save_costs_training_no_more_than_a_copy(build_run, monkeypatch):
    """While the files of a checkpoint are written steps are done, and weights change."""
    run = build_run("train.checkpoint_every=1", "train.steps=4")
    goes_on, seal = threading.Event(), saver_module._seal

    def wait(directory: Path, step: int) -> None:
        assert goes_on.wait(60)
        seal(directory, step)

    monkeypatch.setattr(saver_module, "_seal", wait)
    with Saver(run.engine, run.directory, run.tokenizer_dir, run.config.to_yaml(), run.config.train) as saver:
        train_step(run, run.dataset[0], 1)
        then = master_weights(run.engine)
        saver.begin(1)
        for step in (2, 3):
            train_step(run, run.dataset[step - 1], step)
            saver.advance(int(saver.writing), int(saver.failed))
        assert list_checkpoints(run.directory) == []
        goes_on.set()
    now, saved = master_weights(run.engine), load_file(resolve_model_dir(run.directory) / "model.safetensors")
    assert all(torch.equal(saved[name], weight) for name, weight in then.items())
    assert not any(torch.equal(saved[name], weight) for name, weight in now.items() if weight.dim() > 1)


def test_old_checkpoints_are_kept_by_number_by_hours_and_the_best(build_run, monkeypatch):
    run = build_run("train.keep_checkpoints=2", "train.keep_hours=1")
    now = 1e9
    monkeypatch.setattr(saver_module.time, "time", lambda: now)
    with Saver(run.engine, run.directory, run.tokenizer_dir, run.config.to_yaml(), run.config.train) as saver:
        for step in range(1, 9):
            now += 1500  # seconds
            saver.begin(step, best=step == 3)
    kept = [int(path.name.removeprefix("step-")) for path in list_checkpoints(run.directory)]
    assert kept == [1, 3, 4, 7, 8]  # at 25, 75, 100, 175 and 200 minutes


def _config_of(run) -> Path:
    path = run.directory / "as-it-was.yaml"
    path.write_text(run.config.to_yaml())
    (run.directory / "config.yaml").write_text(run.config.to_yaml())
    return path
