"""Every kernel test on every instruction set that this machine has and its libraries can be told to use: a process a
setting. What a processor of another maker runs by default, a test of the defaults alone would never see.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fashionbert_fast import cpu

ROOT = Path(__file__).parent.parent.parent
LEVEL = "FASHIONBERT_CPU_LEVEL="
AVX2 = "ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 ATEN_CPU_CAPABILITY=avx2"
# Settings, and the flags of /proc/cpuinfo that they need.
SETTINGS = {
    "ONEDNN_MAX_CPU_ISA=AVX2": ("avx2",),
    "ONEDNN_MAX_CPU_ISA=AVX512_CORE": ("avx512bw",),
    "ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI": ("avx512_vnni",),
    "ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16": ("avx512_bf16",),
    "ONEDNN_MAX_CPU_ISA=AVX10_1_512_AMX": ("amx_bf16",),
    "MKL_ENABLE_INSTRUCTIONS=AVX2": ("avx2",),
    "MKL_ENABLE_INSTRUCTIONS=AVX512": ("avx512f",),
    "ATEN_CPU_CAPABILITY=default": (),
    "ATEN_CPU_CAPABILITY=avx2": ("avx2",),
    "ATEN_CPU_CAPABILITY=avx512": ("avx512f",),
    "FASHIONBERT_FLOAT32_PRODUCTS=matmul": (),
    "FASHIONBERT_FLOAT32_PRODUCTS=onednn": (),
    AVX2: ("avx2",),
    **{LEVEL + level: needs for level, needs in cpu.LEVELS.items()},
    f"{LEVEL}x86-64-v3 {AVX2}": cpu.LEVELS["x86-64-v3"],
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def portable_package(tmp_path_factory) -> Path:
    """A folder with a copy of the package and a library for each level, as in a wheel; the installed one stays as it
    is."""
    import pybind11

    root = tmp_path_factory.mktemp("portable")
    skip = shutil.ignore_patterns("*.so", "__pycache__")
    package = shutil.copytree(ROOT / "fashionbert_fast", root / "fashionbert_fast", ignore=skip)
    configure = [
        "cmake", "-G", "Ninja", "-S", ROOT, "-B", root / "build", f"-DPython_EXECUTABLE={sys.executable}",
        f"-DTORCH_ROOT={Path(torch.__file__).parent}", f"-DTORCH_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DFASHIONBERT_OUTPUT_DIR={package}", "-DFASHIONBERT_CUDA=OFF",
        "-DFASHIONBERT_LEVELS=portable", f"-DTORCH_VERSION={torch.__version__}", "-DCMAKE_BUILD_TYPE=Release",
    ]  # fmt: skip
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for command in (configure, ["cmake", "--build", root / "build"]):
        result = subprocess.run(command, env=os.environ | {"PATH": path}, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return root


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_kernel_test_passes_under(setting, request):
    missing = set(SETTINGS[setting]) - cpu.flags()
    if missing:
        pytest.skip(f"{setting}: this processor lacks {' '.join(sorted(missing))}")
    environment = os.environ | dict(pair.split("=") for pair in setting.split())
    package = ROOT
    if LEVEL in setting:
        package = request.getfixturevalue("portable_package")
    environment["PYTHONPATH"] = os.pathsep.join([str(package), str(ROOT), os.environ.get("PYTHONPATH", "")])
    # The package under test by its path, not the installed one; the tests themselves from here.
    program = (
        "import sys, pytest, fashionbert_fast\n"
        f"assert fashionbert_fast.__file__.startswith({str(package)!r}), fashionbert_fast.__file__\n"
        # What Triton compiles and interprets is the same under every setting of the libraries.
        "sys.exit(pytest.main(['-q', '-x', '-m', 'not slow', '-k', 'not interpreter', '-p', 'no:cacheprovider',\n"
        f"    {str(ROOT / 'tests' / 'kernels')!r}]))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=package, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
