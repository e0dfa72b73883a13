"""`fashionbert doctor`: what is installed, how the native code was built, what each operator would use where."""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import importlib.util
import platform
import re
import shutil
import subprocess
from types import ModuleType

from fashionbert_fast import __version__, cpu
from fashionbert_fast.operators import OPERATORS

EPILOG = """examples:
  fashionbert doctor
  fashionbert doctor --json doctor.json"""

# Those that matrix products and the operators choose by.
INSTRUCTIONS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
PACKAGES = ("torch", "triton", "deepspeed", "transformers", "tokenizers", "safetensors", "pybind11", "ninja", "nvtx")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("--json", metavar="FILE", help="write the same as JSON")


def installed_versions() -> dict[str, str | None]:
    """Version of each package this project stands on, None where it is missing."""
    versions: dict[str, str | None] = {"fashionbert_fast": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _nvcc() -> str:
    path = shutil.which("nvcc")
    if path is None:
        return "not found: CUDA sources are skipped"
    lines = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout.splitlines()
    return next((line.strip() for line in lines if "release" in line), path)


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA (major, minor) that this machine's driver serves; None without a driver."""
    try:
        library, version = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
    except OSError:
        return None
    if library.cuDriverGetVersion(ctypes.byref(version)):
        return None
    return version.value // 1000, version.value % 1000 // 10


def driver_fit(built: str, driver: tuple[int, int] | None) -> str:
    """Whether the driver serves the CUDA runtime that is linked into our library, which need not be torch's.

    Args:
        built: what the build says of CUDA, with "nvcc 13.0.88" where it was compiled. driver: of `driver_cuda`.
    """
    if driver is None:
        return "no NVIDIA driver here"
    shown = f"{driver[0]}.{driver[1]}"
    toolkit = re.search(r"nvcc (\d+)\.(\d+)", built)
    if toolkit is None:
        return f"serves CUDA {shown}; CUDA operators were not compiled"
    if driver[0] < int(toolkit[1]):  # within one major version any driver serves any minor one
        return (
            f"TOO OLD: serves CUDA {shown}, the operators were compiled with {toolkit[1]}.{toolkit[2]}; update the "
            f"driver, or build again with an nvcc of CUDA {driver[0]} (CUDA_HOME) by `make setup`"
        )
    return f"serves CUDA {shown}, enough for the operators' {toolkit[1]}.{toolkit[2]}"


def diagnose() -> dict:
    """Everything the command prints, as plain values."""
    import torch

    from fashionbert_fast.engine.optimizer import has_apex

    report: dict = {"versions": installed_versions(), "nvcc": _nvcc()}
    report["apex"] = "installed" if has_apex() else "not installed (optional: fused LAMB and Adam on CUDA)"
    cuda = torch.cuda.is_available()
    uses = torch.backends.cpu.get_cpu_capability()
    instructions = ", ".join(name for name in INSTRUCTIONS if name in cpu.flags()) or "unknown"
    report["devices"] = [f"cpu: {platform.machine()}, instructions: {instructions}; torch uses {uses}"]
    if cuda:
        report["devices"] += [f"cuda:{i}: {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    try:
        from fashionbert_fast.kernels import _library

        report["build"] = _build(_library)
        report["driver"] = driver_fit(report["build"]["cuda"], driver_cuda())
        report["operators"] = {
            schema: _implementations(schema, operator.gpu, cuda)
            for operator in OPERATORS
            for schema in operator.schemas
            if not schema.endswith("backward")
        }
    except ImportError as error:
        report["build"], report["operators"] = {"error": str(error)}, {}
        report["driver"] = driver_fit("", driver_cuda())
    return report


def _build(library: ModuleType) -> dict[str, str]:
    """How the native code was built, and what of it was loaded into this process."""
    build = library.BUILD
    backwards = "C++" if library.NATIVE_AUTOGRAD else "Python, slower for small tensors: this is another torch"
    return {
        "compiler": build["compiler"],
        "cpu levels": f"{build['levels']}; {library.LEVEL} is used",
        "backwards": f"C++ for torch {build['torch']}; {backwards} is used",
        "cuda": build["cuda"],
    }


def _implementations(name: str, gpu: str, cuda_here: bool) -> str:
    """Which devices the dispatcher has a kernel for, and what keeps the CUDA one from running here."""
    import torch

    has = {
        key: torch._C._dispatch_has_kernel_for_dispatch_key(f"fashionbert_fast::{name}", key) for key in ("CPU", "CUDA")
    }
    cpu = "C++" if has["CPU"] else "missing"
    cuda = gpu if has["CUDA"] else "not built: no nvcc when this was compiled"
    return f"cpu: {cpu}; cuda: {cuda}{'' if cuda_here else ' (no CUDA device here)'}"


def run(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    report = diagnose()
    table = Table("what", "found", title="fashionbert doctor", show_lines=False)
    for name, version in report["versions"].items():
        table.add_row(name, version or "[red]missing[/red]")
    table.add_row("apex", report["apex"])
    table.add_row("nvcc", report["nvcc"])
    table.add_row("driver", report["driver"])
    table.add_row("devices", "\n".join(report["devices"]))
    for key, value in report["build"].items():
        table.add_row(f"build: {key}", value)
    for name, value in report["operators"].items():
        table.add_row(f"op: {name}", value)
    Console().print(table)
    if args.json:
        from fashionbert_fast.files import write_json

        write_json(args.json, report)
    return 0 if report["operators"] else 1
