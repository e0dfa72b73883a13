"""Everything a GPU can prove and time, in one command of some minutes:

    python -m benchmarks.gpu_suite --json benchmarks/results/h100.json

The GPU tests first (kernels against float64, training in bf16 and fp16), each a proof; then the operators against their
peers; then whole steps of BERT-base and large. What fails is recorded and the rest goes on; rows are written after each
part, so that an interrupted run keeps what it measured.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measure import measure_parts
from benchmarks.run import parts, write
from fashionbert_fast.errors import InputError
from fashionbert_fast.files import check_writable

ROOT = Path(__file__).parent.parent


def proofs() -> list[dict]:
    """The GPU tests, a row a test file: ``k`` of ``n`` passed."""
    with TemporaryDirectory() as directory:
        junit = Path(directory) / "junit.xml"
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-m", "gpu", f"--junitxml={junit}", "tests"], cwd=ROOT, check=False
        )
        if not junit.exists():
            return [{"proof": "GPU tests ran", "k": 0, "n": 1, "met": False}]
        cases = list(ElementTree.parse(junit).iter("testcase"))
    files: dict[str, list[bool]] = {}
    for case in cases:
        passed = not any(child.tag in ("failure", "error", "skipped") for child in case)
        files.setdefault(case.get("classname", "?"), []).append(passed)
    return [
        {"proof": name, "k": sum(passed), "n": len(passed), "met": all(passed)}
        for name, passed in sorted(files.items())
    ]


def measurements(quick: bool) -> dict[str, Callable]:
    """Name -> what gives the rows of that part on a device."""
    steps = {f"step {size}": parts("step", quick, size=size)["step"] for size in ("base", "large")}
    return parts("ops", quick) | steps


def main(argv: list[str] | None = None) -> int:
    import torch

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the proofs and rows go")
    parser.add_argument("--quick", action="store_true", help="fewest sizes and repeats")
    parser.add_argument(
        "--only", nargs="+", metavar="PART", help="some parts: proofs, " + ", ".join(measurements(True))
    )
    args = parser.parse_args(argv)
    try:
        check_writable(args.json)
        if not torch.cuda.is_available():
            raise InputError("gpu_suite: there is no CUDA device here; `fashionbert bench` measures on a CPU")
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    device = torch.device("cuda")
    wanted = {name: part for name, part in measurements(args.quick).items() if not args.only or name in args.only}
    proved = proofs() if not args.only or "proofs" in args.only else []
    keep = lambda rows, failed: write(args.json, rows, proved + failed, device)  # noqa: E731
    rows, failed = measure_parts(wanted, device, keep)
    keep(rows, failed)
    return 0 if all(proof["met"] for proof in proved + failed) else 1


if __name__ == "__main__":
    sys.exit(main())
