"""The GPU suite, carried: what the folder holds, what its installer refuses, and (slow) a machine without a network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from outside import run_outside

from benchmarks.gpu import carry, carry_install
from fashionbert_fast.errors import InputError

ROOT = Path(__file__).parents[2]
TAG = f"cp{sys.version_info.major}{sys.version_info.minor}"
# No index, one that answers nothing where it is asked all the same, and nothing that this machine sets pip up by.
CUT = {"PIP_NO_INDEX": "1", "PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_CONFIG_FILE": "/dev/null",
       "PIP_FIND_LINKS": "", "HF_HUB_OFFLINE": "1"}  # fmt: skip


def _wheel(folder: Path, name: str, tag: str = "py3-none-any", needs: str = "") -> Path:
    """A wheel of nothing, as pip knows one."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-1.0-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        information = f"{name}-1.0.dist-info"
        archive.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}")
        archive.writestr(f"{information}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{information}/RECORD", "")
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """A carried folder whose wheels hold nothing."""
    folder = tmp_path / "carried"
    folder.mkdir()
    _wheel(folder / "wheels", "fashionbert_fast", f"{TAG}-{TAG}-linux_{carry_install.sysconfig.get_platform()[6:]}")
    _wheel(folder / "wheels", "pip")
    carry.seal(folder, {"torch": "torch==2.13.0", "torch_carried": False, "install": []})
    return folder


def _install(folder: Path, *words: object) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, str(folder / "install.py"), *map(str, words)], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "new", "--torch", "torch>=2.11"], "--torch torch>=2.11: give one version"),
        (["--out", "full"], "not empty"),
        (["--out", "nowhere/new"], "no directory"),
        (["--out", "new", "--wheel", "none.whl"], "make dist"),
        (["--out", "new", "--wheel", "full/pip-1.0-py3-none-any.whl"], "another fashionbert_fast/__init__.py than"),
        (["--out", "new", "--python", "python0"], "--python python0: no such program"),
        (["--out", "new", "--python", "true"], "does not run as a Python"),
        (["--out", "new", "--there", "none.txt"], "none.txt: cannot be read"),
        (["--out", "new", "--there", "there.txt"], "there.txt, line 2: 'torch @ file:///x'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    _wheel(tmp_path / "full", "pip")
    (tmp_path / "there.txt").write_text("numpy==2.0\ntorch @ file:///x\n")
    assert carry.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("carry: error: ") and said in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "there.txt"]


def test_the_manifest_and_the_sums_list_everything(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["packages"] == {"fashionbert_fast": "1.0", "pip": "1.0"}
    assert manifest["python"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert manifest["platform"].startswith("linux_") and manifest["cuda_operators"] is False
    assert (folder / "benchmarks" / "COMMIT").read_text() == manifest["commit"] + "\n"
    listed = {line.split("  ", 1)[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert listed == there - {"SHA256SUMS"}
    tracked = subprocess.run(["git", "ls-files", "benchmarks"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(tracked.stdout.split()) <= there
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=True)


def test_rows_that_are_measured_there_bear_the_commit(folder):
    (folder / "benchmarks" / "COMMIT").write_text("0123456789ab\n")
    program = "from benchmarks.measure import commit; print(commit())"
    said = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True)
    assert said.stdout == "0123456789ab\n"


def test_what_is_damaged_or_missing_is_named(folder):
    wheel = folder / "wheels" / "pip-1.0-py3-none-any.whl"
    whole = wheel.read_bytes()
    wheel.write_bytes(whole[:-1] + b"x")
    status, said = _install(folder, "--keep-torch")
    assert status == 2 and f"{wheel}: is damaged" in said
    wheel.unlink()
    assert f"{wheel}: is missing" in _install(folder, "--keep-torch")[1]
    (folder / "SHA256SUMS").unlink()
    status, said = _install(folder)
    assert status == 2 and "SHA256SUMS: is missing" in said and len(said.splitlines()) == 1
    assert not (folder / "env").exists()


def test_another_python_or_machine_is_refused_with_the_remedy():
    manifest = {"python": "3.99", "platform": carry_install.sysconfig.get_platform().replace("-", "_")}
    with pytest.raises(carry_install.Refused, match=r"for Python 3\.99 .* run it by python3\.99, .* --python python3"):
        carry_install.check_python(manifest)
    manifest = {"python": f"{sys.version_info.major}.{sys.version_info.minor}", "platform": "linux_riscv64"}
    with pytest.raises(carry_install.Refused, match="on linux_riscv64"):
        carry_install.check_python(manifest)


def test_an_environment_that_is_there_and_a_folder_without_torch_are_refused(folder):
    status, said = _install(folder)
    assert status == 2 and "no torch is in this folder" in said and "--keep-torch" in said
    status, said = _install(folder, "--env", folder)
    assert status == 2 and "--env" in said
    assert not (folder / "env").exists()


def test_what_pip_cannot_install_leaves_nothing(folder):
    status, said = _install(folder, "--keep-torch")  # pip's wheel is empty
    assert status == 2 and "pip could not install" in said.splitlines()[-1]
    assert not (folder / "env").exists()


def test_what_is_there_is_met_and_not_carried(tmp_path, monkeypatch):
    for name, value in CUT.items():
        monkeypatch.setenv(name, value)
    there = tmp_path / "there.txt"
    there.write_text("Torch==2.11.0+cu130\nsome.thing==1.2.post1\npip==20.0\n")
    found = carry.read_there(there)
    assert found == {"torch": "2.11.0+cu130", "some_thing": "1.2.post1"}
    mine = _wheel(tmp_path / "built", "mine", needs="Requires-Dist: torch>=2.11\nRequires-Dist: some-thing>=1.2\n")
    carry.gather(tmp_path / "wheels", [mine], found, sys.executable)
    assert [path.name for path in (tmp_path / "wheels").iterdir()] == [mine.name]
    with pytest.raises(InputError, match="pip wheel failed"):
        carry.gather(tmp_path / "wheels", [mine], {"torch": "2.10", "some_thing": "2"}, sys.executable)


def test_our_wheel_is_built_for_the_python_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(carry, "ROOT", tmp_path)
    (tmp_path / "pyproject.toml").write_text(
        "[build-system]\nrequires = []\nbuild-backend = 'setuptools.build_meta'\n[project]\nname = 'a'\nversion = '1'\n"
    )
    (tmp_path / "setup.py").write_text(
        "import os, setuptools\nassert os.environ['FASHIONBERT_PYTHON'] == '/there/python'\n"
        "setuptools.setup(py_modules=[])\n"
    )
    (tmp_path / "built").mkdir()
    here = f"torch=={torch.__version__.split('+')[0]}"
    wheel = carry.build(tmp_path / "built", here, "/there/python", "cp399")
    assert wheel.name == "a-1-cp399-cp399-any.whl" and wheel.exists()
    with pytest.raises(InputError, match="could not be built"):
        carry.build(tmp_path / "built", here, "/another/python", "cp399")
    assert "AssertionError" in capsys.readouterr().err


# A machine without a network -----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def carried(wheel, tmp_path_factory) -> Iterator[Path]:
    """Gathered with all that it needs, and moved."""
    root = tmp_path_factory.mktemp("carried")
    run_outside(sys.executable, "-m", "benchmarks.gpu.carry", "--out", root / "gathered", "--wheel", wheel, cwd=ROOT)
    yield Path(shutil.move(root / "gathered", root / "moved to"))
    shutil.rmtree(root)  # gigabytes, with the environment


@pytest.fixture(scope="module")
def there(carried) -> tuple[Path, str]:
    """The Python of an environment from the folder alone, and what the installer said."""
    env = carried.parent / "env"
    said = run_outside(sys.executable, carried / "install.py", "--env", env, cwd=env.parent, **CUT)
    return env / "bin" / "python", said


def _normal(packages: dict[str, str]) -> dict[str, str]:
    return {re.sub(r"[-_.]+", "_", name).lower(): version for name, version in packages.items()}


@pytest.mark.slow
@pytest.mark.timeout(1800)
class TestWithoutANetwork:
    def test_everything_that_was_carried_is_installed_and_nothing_else(self, carried, there):
        python, said = there
        listed = run_outside(python, "-m", "pip", "list", "--format=freeze", cwd=python.parent, **CUT)
        found = _normal(dict(line.split("==") for line in listed.split()))
        assert found == _normal(json.loads((carried / "manifest.json").read_text())["packages"])
        assert {"torch", "triton", "deepspeed", "transformers", "nvtx", "torchao", "setuptools"} <= set(found)
        assert "fashionbert doctor" in said and "-m benchmarks.gpu.gpu_suite --json gpu.json" in said

    def test_a_part_of_the_suite_runs(self, carried, there):
        path = carried / "benchmarks" / "results" / "x.json"
        words = ("--dry", "--only", "kernel bias_gelu", "--json", path)
        run_outside(there[0], "-m", "benchmarks.gpu.gpu_suite", *words, cwd=carried, **CUT)
        written = json.loads(path.read_text())
        assert written["parts"]["kernel bias_gelu"]["status"] == "done" and written["proofs"]
        assert written["commit"] == json.loads((carried / "manifest.json").read_text())["commit"]

    def test_a_python_that_has_a_torch_keeps_it(self, carried, tmp_path):
        env = tmp_path / "env"
        run_outside(sys.executable, carried / "install.py", "--keep-torch", "--env", env, cwd=tmp_path, **CUT)
        program = "import torch, fashionbert_fast; print(torch.__file__, fashionbert_fast.__file__, sep='\\n')"
        theirs, ours = run_outside(env / "bin" / "python", "-c", program, cwd=tmp_path).splitlines()
        assert theirs == torch.__file__ and ours.startswith(str(env))

    def test_no_file_names_a_path_of_this_machine(self, carried):
        for path in carried.rglob("*"):
            held = [path.read_bytes()] if path.is_file() and path.suffix != ".whl" else []
            if path.name.startswith(("fashionbert_fast", "deepspeed")):
                with zipfile.ZipFile(path) as archive:
                    held = [archive.read(name) for name in archive.namelist()]
            for text in held:
                assert not [name for name in (str(ROOT), sys.prefix) if name.encode() in text], path
