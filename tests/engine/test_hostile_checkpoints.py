"""Checkpoints that are damaged or come from a stranger: nothing of them runs, nothing good is lost."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training import ENVIRONMENT

from fashionbert_fast.engine.checkpoint import load_checkpoint, newest_whole, save_checkpoint
from fashionbert_fast.engine.loop import train_step
from fashionbert_fast.errors import InputError
from fashionbert_fast.files import SEAL, seal
from fashionbert_fast.run_directory import MANIFEST, damage, list_checkpoints


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
        run = build_run(*overrides)
        for step in (1, 2):
            train_step(run, run.dataset[step - 1], step)
            save_checkpoint(run.engine, run.directory, step, run.tokenizer_dir, run.config.to_yaml(), 5)
        return run, list_checkpoints(run.directory)

    return make


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_no_code_of_a_checkpoint_runs(saved, tmp_path, stage, precision):
    run, (_, newest) = saved(f"train.zero_stage={stage}", f"train.precision={precision}")
    assert load_checkpoint(run.engine, newest) == 2
    shards = sorted((newest / "state").iterdir())
    assert shards
    for number, shard in enumerate(shards):
        whole, proof = shard.read_bytes(), tmp_path / f"ran-{number}"
        for hostile in ("beside", "instead"):
            state = torch.load(shard, weights_only=False) if hostile == "beside" else {}
            torch.save(state | {"hostile": _Runs(proof)}, shard)
            _resealed(newest)
            assert damage(newest) is None
            with pytest.raises(InputError, match="its state cannot be loaded"):
                load_checkpoint(run.engine, newest)
            shard.write_bytes(pickle.dumps(_Runs(proof)))
            _resealed(newest)
            with pytest.raises(InputError, match="its state cannot be loaded"):
                load_checkpoint(run.engine, newest)
            assert not proof.exists()
            shard.write_bytes(whole)
    _resealed(newest)
    assert load_checkpoint(run.engine, newest) == 2


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
    run, (older, newest) = saved("train.keep_checkpoints=1")
    _changed(newest, step=7)
    done = _started("--config", str(_config_of(run)), "--resume")
    assert done.returncode == 0, done.stderr
    assert f"passed over {newest}" in done.stdout
    assert f"resuming from {older}" in done.stdout
    checkpoints = run.directory / "checkpoints"
    assert (checkpoints / "damaged-step-00000002").is_dir()
    assert [path.name for path in list_checkpoints(run.directory)] == ["step-00000008"]


def test_a_run_with_no_whole_checkpoint_does_not_begin_anew_by_itself(saved):
    run, checkpoints = saved()
    for checkpoint in checkpoints:
        _changed(checkpoint, step=7)
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
    done = _started("--config", "base", f"data.store={store_path}", output, "--resume")
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
        return save_checkpoint(run.engine, run.directory, step, run.tokenizer_dir, run.config.to_yaml(), 1)

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


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("basic_ios::clear: iostream error")]
)
def test_a_disk_that_fills_up_while_it_is_written(build_run, monkeypatch, error):
    run, disk = build_run(), _Disk(monkeypatch)
    disk.free = 2**40

    def fill_up(*_, **__) -> None:
        disk.free = 0
        raise error

    monkeypatch.setattr(run.engine, "save_checkpoint", fill_up)
    arguments = (run.directory, 1, run.tokenizer_dir, run.config.to_yaml(), 1)
    assert save_checkpoint(run.engine, *arguments) is None
    assert list((run.directory / "checkpoints").iterdir()) == []
    monkeypatch.setattr(run.engine, "save_checkpoint", lambda *_, **__: (_ for _ in ()).throw(error))
    disk.free = 2**40
    with pytest.raises(type(error)):  # not for want of room: it is told
        save_checkpoint(run.engine, *arguments)


def _config_of(run) -> Path:
    path = run.directory / "as-it-was.yaml"
    path.write_text(run.config.to_yaml())
    (run.directory / "config.yaml").write_text(run.config.to_yaml())
    return path
