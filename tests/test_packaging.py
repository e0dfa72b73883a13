"""What an installed package is made of: the choice among its libraries, its configurations, the image. The wheel itself
is tested by tests/test_wheel.py.
"""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fashionbert_fast import cli, cpu
from fashionbert_fast.cli import main
from fashionbert_fast.kernels import _library, adaptive_loss

ROOT = Path(__file__).parent.parent
V3 = frozenset(cpu.LEVELS["x86-64-v3"])
V4 = frozenset(cpu.LEVELS["x86-64-v4"])


@pytest.fixture
def built(tmp_path, monkeypatch):
    """Pretends that these levels were built, and that the processor has these flags."""
    monkeypatch.delenv("FASHIONBERT_CPU_LEVEL", raising=False)

    def pretend(levels, flags):
        for level in levels:
            (tmp_path / f"_C.{level}.so").touch()
        monkeypatch.setattr(_library, "PACKAGE", tmp_path)
        monkeypatch.setattr(_library, "BUILD", {"native_needs": "avx2 avx512_vnni"})
        monkeypatch.setattr(cpu, "flags", lambda: frozenset(flags))

    return pretend


def test_the_build_and_the_choice_name_the_same_levels():
    listed = re.findall(r"^set\(OPTIONS_(\S+?)[ )]", (ROOT / "CMakeLists.txt").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(["native", *cpu.LEVELS])


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        ((), "baseline"),  # or no /proc/cpuinfo
        (V3 - {"fma"}, "baseline"),
        (V3, "x86-64-v3"),
        (V4 - {"avx512dq"}, "x86-64-v3"),
        (V4, "x86-64-v4"),
        (V4 | {"avx512_bf16"}, "x86-64-v4-bf16"),
        (V3 | {"avx512_bf16"}, "x86-64-v3"),
    ],
)
def test_the_best_level_that_the_processor_has_is_loaded(flags, level, built):
    built(cpu.LEVELS, flags)
    assert _library._level() == level


def test_a_level_can_be_asked_for_but_not_one_that_would_crash(built, monkeypatch):
    built(cpu.LEVELS, V4)
    monkeypatch.setenv("FASHIONBERT_CPU_LEVEL", "baseline")
    assert _library._level() == "baseline"
    monkeypatch.setenv("FASHIONBERT_CPU_LEVEL", "x86-64-v4-bf16")
    with pytest.raises(ImportError, match=r"this processor lacks avx512_bf16: build it here"):
        _library._level()
    monkeypatch.setenv("FASHIONBERT_CPU_LEVEL", "native")
    with pytest.raises(ImportError, match=r"FASHIONBERT_CPU_LEVEL=native: this build has x86-64-v4-bf16, "):
        _library._level()


def test_a_native_build_carried_to_a_lesser_processor_says_so(built):
    built(["native"], ["avx2"])
    with pytest.raises(ImportError, match=r"_C\.native\.so: this processor lacks avx512_vnni: build it here"):
        _library._level()
    built([], ["avx2", "avx512_vnni"])
    assert _library._level() == "native"


def test_this_build_knows_what_it_needs():
    assert set(_library.BUILD["native_needs"].split()) <= cpu.flags()
    if _library.LEVEL == "native" and "avx2" in cpu.flags():
        assert "avx2" in _library.BUILD["native_needs"].split()


def _gradients() -> list[torch.Tensor]:
    """Of adaptive_loss, by dtype, by which of its outputs has a gradient, and by weights detached or not."""
    found = []
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for detach in (False, True):
            for by_loss, by_weights in ((1, 0), (0, 1), (1, 1)):
                losses_T = torch.tensor([7.0, 0.7, 0.05], dtype=dtype, requires_grad=True)
                loss, weights_T = adaptive_loss(losses_T, alpha=1.5, detach_weights=detach)
                parts = [loss] * by_loss + [weights_T[0] * 3] * by_weights
                if parts[-1].requires_grad or len(parts) == 2:
                    (gradient,) = torch.autograd.grad(sum(parts), losses_T)
                    found.append(gradient)
    return found


def test_beside_another_torch_the_same_backward_is_registered_in_python(tmp_path):
    program = (
        "import sys, torch\n"
        "torch.__version__ = '2.999.0'\n"
        "import importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('packaging', {__file__!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "assert not module._library.NATIVE_AUTOGRAD\n"
        f"torch.save(module._gradients(), {str(tmp_path / 'gradients.pt')!r})\n"
        "from fashionbert_fast.commands.doctor import diagnose\n"
        "print(diagnose()['build']['backwards'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"C++ for torch {torch.__version__}; Python" in done.stdout
    assert _library.NATIVE_AUTOGRAD
    theirs, ours = torch.load(tmp_path / "gradients.pt"), _gradients()
    assert len(theirs) == len(ours) == 15
    assert all(torch.equal(a, b) for a, b in zip(theirs, ours, strict=True))


def test_bench_without_a_checkout_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "fashionbert_fast" / "cli.py"))
    assert main(["bench", "ops"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fashionbert bench: error: ") and "checkout" in line


def test_the_installed_command_finds_the_checkouts_benchmarks_from_anywhere(tmp_path):
    command = [str(Path(sys.executable).parent / "fashionbert"), "bench", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "--quick" in done.stdout, done.stderr


@pytest.fixture
def setup_py(monkeypatch):
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    return runpy.run_path(str(ROOT / "setup.py"))


def test_a_torch_with_cuda_is_not_left_without_kernels(setup_py, tmp_path):
    nothing = {"PATH": str(tmp_path / "nowhere"), "CUDA_HOME": str(tmp_path)}
    find = setup_py["cuda_environment"]
    if not Path("/usr/local/cuda/bin/nvcc").exists():
        with pytest.raises(SystemExit, match=r"built for CUDA 13\.0.*CUDA_HOME"):
            find("13.0", nothing)
    assert find(None, nothing) and find("13.0", nothing | {"FASHIONBERT_CUDA": "OFF"})
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.touch(mode=0o755)
    assert str(nvcc.parent) in find("13.0", nothing)["PATH"].split(os.pathsep)


def test_a_checkout_has_the_shipped_configurations_in_configs():
    assert sorted(path.name for path in (ROOT / "configs").iterdir()) == [
        "article.yaml",
        "base.yaml",
        "large.yaml",
        "query.yaml",
        "small.yaml",
    ]


def test_the_image_copies_what_is_there_and_has_the_makefiles_torch():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert {"pyproject.toml", "setup.py", "CMakeLists.txt", "csrc", "fashionbert_fast"} <= set(copied)
    assert [name for name in copied if not (ROOT / name).exists()] == []
    (image,) = (line.split()[1] for line in lines if line.startswith("FROM "))
    (version,) = re.findall(r"^TORCH \?= torch==(\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert image.startswith(f"pytorch/pytorch:{version}-cuda") and image.endswith("-devel")
    assert f'"deepspeed{_requirement("deepspeed")}"' in "\n".join(lines)


def _requirement(package: str) -> str:
    (version,) = re.findall(rf'^    "{package}(>=[0-9.,<]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    return version
