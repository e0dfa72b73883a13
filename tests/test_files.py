"""Files and folders are on the disk before they are where they are looked for; one owner holds a lock."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fashionbert_fast import files
from fashionbert_fast.errors import InputError
from fashionbert_fast.features.store import StoreWriter
from fashionbert_fast.files import written_whole


@pytest.fixture
def events(monkeypatch) -> list[tuple[str, str]]:
    """(what, the file's name) of each flush to the disk and each change of a name, in order."""
    seen: list[tuple[str, str]] = []

    def logged(name: str, told):
        real = getattr(os, name)

        def call(*args):
            seen.append((name, told(*args)))
            return real(*args)

        monkeypatch.setattr(os, name, call)

    logged("fsync", lambda descriptor: Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
    logged("rename", lambda _, target: Path(target).name)
    logged("replace", lambda _, target: Path(target).name)
    return seen


def test_a_folder_is_on_the_disk_before_it_appears(tmp_path, events):
    with files.written_whole(tmp_path / "new") as folder:
        (folder / "a").write_text("a")
        (folder / "b").write_text("b")
        assert not (tmp_path / "new").exists()
    partial = f".new.{os.getpid()}.partial"
    assert sorted(events[:3]) == sorted(("fsync", name) for name in ("a", "b", partial))
    assert events[3:] == [("rename", "new"), ("fsync", tmp_path.name)]
    assert list(tmp_path.iterdir()) == [tmp_path / "new"]


def test_files_join_a_folder_that_has_some_each_of_them_whole(tmp_path, events):
    (tmp_path / "other").write_text("kept")
    (tmp_path / "a").write_text("old")
    with files.written_whole(tmp_path) as folder:
        (folder / "a").write_text("new")
        assert (tmp_path / "a").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "other"]
    assert (tmp_path / "a").read_text() == "new"
    assert events.index(("fsync", "a")) < events.index(("replace", "a")) < events.index(("fsync", tmp_path.name))


def test_a_block_that_raises_changes_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), files.written_whole(tmp_path / "new") as folder:
        (folder / "a").write_text("a")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_store_is_on_the_disk_before_it_appears(tmp_path, events):
    from conftest import manifest_of

    from fashionbert_fast.catalogue.product import Product

    with StoreWriter(tmp_path / "store", patches=4, feature_size=3) as writer:
        writer.append([Product("1", "Hat", "", "", Path("1.jpg"), "train")], torch.zeros(1, 4, 3))
        writer.commit(manifest_of(2, 3))
    appears = events.index(("rename", "store"))
    flushed = {name for what, name in events[:appears] if what == "fsync"}
    assert flushed == {"features.bin", "products.parquet", "problems.jsonl", "manifest.json", writer.partial.name}
    assert events[appears:] == [("rename", "store"), ("fsync", tmp_path.name)]


def test_json_is_on_the_disk_before_it_appears(tmp_path, events):
    files.write_json(tmp_path / "x.json", {"a": 1})
    partial = f".x.json.{os.getpid()}.partial"
    assert events == [("fsync", partial), ("replace", "x.json"), ("fsync", tmp_path.name)]
    assert files.read_json(tmp_path / "x.json") == {"a": 1}


HOSTILE = {
    "nested": b"[" * 100_000,
    "of many parts": b'{"a": [' + b"[]," * 600_000 + b"[]]}",
    "digits": b'{"a": ' + b"1" * 5000 + b"}", "not UTF-8": b'{"a": "\xff"}', "a list": b"[1]",
    "cut": b'{"a"', "nothing": b"", "binary": bytes(range(256)),
}  # fmt: skip


@pytest.mark.parametrize("kind", [*HOSTILE, "huge", "pipe", "folder", "device", "absent", "a loop of links"])
def test_what_is_no_json_is_told_in_a_line(tmp_path, kind):
    path = tmp_path / "x.json"
    if kind in HOSTILE:
        path.write_bytes(HOSTILE[kind])
    elif kind == "huge":
        path.touch()
        os.truncate(path, 2**40)  # of no blocks
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind != "absent":
        path.symlink_to("/dev/zero" if kind == "device" else path)
    with pytest.raises(InputError, match=r"^.*x\.json: cannot be read .*; fetch it again$"):
        files.read_json(path)


def test_a_lock_has_one_owner_and_leaves_no_file(tmp_path):
    """Whoever waits at a file that its owner has taken away has no lock: the next one makes another."""
    path = tmp_path / ".lock"
    stale = path.open("a+")
    with files.sole_owner(path, "x: is taken", "wait"):
        child = os.fork()  # POSIX's locks are of a process
        if child == 0:
            try:
                with files.sole_owner(path, "x: is taken", "wait"):
                    os._exit(0)
            except InputError as error:
                os._exit(7 if str(error).startswith(f"x: is taken (process {os.getppid()} on ") else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert not path.exists()
    assert not files._is_at(stale, path)
    path.touch()
    assert not files._is_at(stale, path)
    stale.close()


def test_a_message_is_one_line_without_what_a_terminal_obeys():
    assert str(InputError("a\n\x1b[2Jb")) == "a  [2Jb"


def test_what_is_written_whole_others_may_read_as_far_as_the_mask_says(tmp_path):
    before = os.umask(0o027)
    try:
        with written_whole(tmp_path / "folder") as folder:
            save_file({"x": torch.zeros(1)}, folder / "x.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "folder" / "x.safetensors").stat().st_mode & 0o777 == 0o640
