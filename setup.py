"""Builds the native library with CMake + ninja. CMakeLists.txt holds the one list of sources."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from shutil import which

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def cuda_environment(torch_cuda: str | None, environment: dict[str, str]) -> dict[str, str]:
    """``environment`` with nvcc on its PATH where CUDA_HOME, CUDA_PATH or /usr/local/cuda has one.

    SystemExit where torch has CUDA and no nvcc is found: without the CUDA kernels a GPU's first step would fail.
    """
    homes = [environment.get("CUDA_HOME"), environment.get("CUDA_PATH"), "/usr/local/cuda"]
    path = os.pathsep.join([environment["PATH"], *(os.path.join(home, "bin") for home in homes if home)])
    if (
        torch_cuda is not None
        and environment.get("FASHIONBERT_CUDA", "AUTO") == "AUTO"
        and not which("nvcc", path=path)
    ):
        raise SystemExit(
            f"this torch is built for CUDA {torch_cuda}, but there is no nvcc on PATH nor in CUDA_HOME: install the "
            "CUDA toolkit and set CUDA_HOME, or set FASHIONBERT_CUDA=OFF for a build that runs on CPUs alone"
        )
    return environment | {"PATH": path}


class CMakeBuild(build_ext):
    """Configure and build with CMake, placing the libraries inside the package."""

    def build_extension(self, ext: Extension) -> None:
        if os.environ.get("FASHIONBERT_SKIP_BUILD") == "1":
            return  # dependencies first; the Makefile builds in a step of its own
        import pybind11
        import torch

        package = (
            ROOT / "fashionbert_fast" if self.editable_mode else Path(self.get_ext_fullpath(ext.name)).resolve().parent
        )
        wheel = "bdist_wheel" in self.distribution.commands  # for processors that are not known yet
        build = Path(self.build_temp).resolve() if wheel else ROOT / "build"
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake",
            "-G",
            "Ninja",
            # benchmarks.gpu.carry builds for the Python of another machine; only _host is made for one.
            f"-DPython_EXECUTABLE={os.environ.get('FASHIONBERT_PYTHON', sys.executable)}",
            f"-DTORCH_ROOT={Path(torch.__file__).parent}",
            f"-DTORCH_VERSION={torch.__version__}",
            f"-DTORCH_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DFASHIONBERT_OUTPUT_DIR={package}",
            f"-DFASHIONBERT_CUDA={os.environ.get('FASHIONBERT_CUDA', 'AUTO')}",
            f"-DFASHIONBERT_LEVELS={os.environ.get('FASHIONBERT_LEVELS', 'portable' if wheel else 'native')}",
            "-DCMAKE_BUILD_TYPE=Release",
            str(ROOT),
        ]
        environment = dict(os.environ, PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        environment = cuda_environment(torch.version.cuda, environment)
        subprocess.run(configure, cwd=build, check=True, env=environment)
        subprocess.run(["cmake", "--build", ".", "--parallel"], cwd=build, check=True, env=environment)

    def copy_extensions_to_source(self) -> None:
        """Nothing to copy: an editable build already writes into the package."""

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + ".so"  # no Python ABI tag: the library is not a Python module


setup(ext_modules=[Extension("fashionbert_fast._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
