"""Every CUDA source compiles for every architecture we ship, without spilling a register. Needs nvcc, not a GPU."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
KERNEL = re.compile(
    r"Function properties for (?P<name>\S+)\n\s*(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads\nptxas info\s*: Used (?P<registers>\d+) registers"
)


def _compile(entry: dict, directory: Path) -> str:
    """What ptxas says of one source, compiled as the build compiles it."""
    command = shlex.split(entry["command"])
    command[command.index("-o") + 1] = str(directory / (Path(entry["file"]).name + ".o"))
    result = subprocess.run(command, cwd=entry["directory"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stderr + result.stdout


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="compiling CUDA sources needs nvcc")
def test_cuda_sources_compile_and_spill_nothing(tmp_path, capsys):
    commands = json.loads((ROOT / "build" / "compile_commands.json").read_text())
    entries = [entry for entry in commands if entry["file"].endswith(".cu")]
    if not entries:
        pytest.skip("this build left CUDA out (FASHIONBERT_CUDA=OFF)")
    assert {Path(entry["file"]) for entry in entries} == set(SOURCES), "a source is missing from CMakeLists.txt"
    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(lambda entry: _compile(entry, tmp_path), entries))
    with capsys.disabled():
        print(f"\n{'CUDA source':28} kernels  registers  spilled bytes")
        for entry, report in zip(entries, reports, strict=True):
            for architecture in ("sm_80", "sm_90"):
                assert f"for '{architecture}'" in report, f"{entry['file']} was not compiled for {architecture}"
            assert "code=[compute_90]" in entry["command"], "no PTX for later architectures"
            kernels = [match.groupdict() for match in KERNEL.finditer(report)]
            assert kernels, report
            registers = [int(kernel["registers"]) for kernel in kernels]
            spilled = sum(int(kernel[field]) for kernel in kernels for field in ("stack", "stores", "loads"))
            span = f"{min(registers)}-{max(registers)}"
            print(f"{Path(entry['file']).name:28} {len(kernels):7}  {span:>9}  {spilled:13}")
            assert spilled == 0, f"{entry['file']} spills:\n{report}"
