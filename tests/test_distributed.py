"""Joining the process group: DeepSpeed's helper is compiled by one process at a time, whoever was killed before."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import pytest
import torch
from training import ENVIRONMENT

from fashionbert_fast import distributed
from fashionbert_fast.errors import InputError

HOLD = """
import os, sys
from pathlib import Path
from fashionbert_fast import distributed
with distributed._own_extensions():
    folder = Path(os.environ["TORCH_EXTENSIONS_DIR"], "helper")
    folder.mkdir()
    (folder / "lock").touch()  # as torch does while it compiles
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path, monkeypatch):
    """A process in the middle of compiling into this test's folder."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    environment = ENVIRONMENT | {"TORCH_EXTENSIONS_DIR": str(tmp_path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", HOLD], env=environment, **pipes)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_who_is_killed_while_compiling_stops_nobody(holder, tmp_path):
    left_behind = next(tmp_path.rglob("lock"))
    holder.send_signal(signal.SIGKILL)
    with distributed._own_extensions():
        assert not left_behind.exists()
        assert os.environ["TORCH_EXTENSIONS_DIR"].startswith(str(tmp_path / "fashionbert_fast"))
    assert os.environ["TORCH_EXTENSIONS_DIR"] == str(tmp_path)


def test_who_compiles_is_waited_for(holder, tmp_path):
    entered = threading.Event()

    def enter() -> None:
        with distributed._own_extensions():
            entered.set()

    waiting = threading.Thread(target=enter)
    waiting.start()
    assert not entered.wait(0.5)
    assert next(tmp_path.rglob("lock")).exists()
    holder.communicate("", timeout=30)
    assert entered.wait(30)
    waiting.join()


def test_a_start_beside_a_lock_of_the_dead_ends(tmp_path):
    from torch.utils.cpp_extension import get_default_build_root

    built = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root(), "fashionbert_fast")
    if not built.exists():  # `make setup` makes it
        subprocess.run([sys.executable, "-m", "fashionbert_fast.distributed"], env=ENVIRONMENT, check=True)
    shutil.copytree(built, tmp_path / "fashionbert_fast")
    (helper,) = (tmp_path / "fashionbert_fast").glob(f"*-{zlib.crc32(torch.__file__.encode()):08x}/deepspeed_shm_comm")
    (helper / "lock").touch()
    environment = ENVIRONMENT | {"TORCH_EXTENSIONS_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "fashionbert_fast.distributed"]
    subprocess.run(command, env=environment, check=True, timeout=120)


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"file/fashionbert_fast.*TORCH_EXTENSIONS_DIR"), distributed._own_extensions():
        pass
