"""Everything the GPU suite needs, in a folder from which a machine without a network installs.

    python -m benchmarks.gpu.carry --out carried                        # wheels, torch's too, our library, benchmarks/
    python -m benchmarks.gpu.carry --out carried --without-torch        # the Python there has a torch of its own
    python -m benchmarks.gpu.carry --out carried --there there.txt   # and more; what `pip list --format=freeze` printed
    python -m benchmarks.gpu.carry --out carried --without-torch --python python3.12

then copy the folder to the other machine, and there:

    python3 carried/install.py                                      # an environment from that folder alone
    python3 carried/install.py --keep-torch                         # one that keeps the torch of this python3

This machine must be of the other's kind (Linux, the same processor architecture, a glibc no newer than there), and have
nvcc for the CUDA operators. The build takes 4 to 10 minutes on two cores; `--wheel` takes one of `make dist`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.tree import ROOT, copy_files, tracked_files
from fashionbert_fast.errors import InputError
from fashionbert_fast.files import check_writable, write_json

TOOLS = ("pip", "setuptools", "wheel")  # for an environment that begins with nothing
OURS = "fashionbert_fast[fp8]"
README = """# The GPU suite of fashionbert_fast, carried

    python3 install.py                  # env/ in this folder, from this folder alone
    python3 install.py --keep-torch     # env/ sees the packages of the Python that runs this, and keeps its torch
    env/bin/python -m benchmarks.gpu.gpu_suite --json gpu.json

For Python {python} on {platform}; `manifest.json` has the commit and every version, SHA256SUMS every file's hash.
Another Python needs another folder: `python -m benchmarks.gpu.carry --python pythonX.Y`. Triton and DeepSpeed compile
small helpers when they first run, which takes a C and a C++ compiler and Python's headers on this machine.
"""


def _pip(*words: object, python: str = sys.executable) -> None:
    """pip under ``python``, saying what it says. InputError where it fails."""
    command = [sys.executable, "-m", "pip", "--python", python, *map(str, words)]
    # DeepSpeed comes as source, and compiles its operators where they first run (see Makefile).
    if subprocess.run(command, env=os.environ | {"DS_BUILD_OPS": "0"}, check=False).returncode:
        raise InputError(f"pip {words[0]} failed: what it said is above")


def read_there(path: Path) -> dict[str, str]:
    """Package -> version of what ``pip list --format=freeze`` printed on the other machine."""
    found = {}
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give what `pip list --format=freeze` printed") from error
    for number, line in enumerate(lines, 1):
        match = re.fullmatch(r"([\w.-]+)==([\w.!+]+)", line.strip())
        if match is None:
            raise InputError(f"{path}, line {number}: {line!r} is no NAME==VERSION of `pip list --format=freeze`")
        found[re.sub(r"[-_.]+", "_", match[1]).lower()] = match[2]
    return {name: version for name, version in found.items() if name not in (*TOOLS, "fashionbert_fast")}


def write_stub(folder: Path, name: str, version: str) -> str:
    """A wheel of nothing that stands for a package of the other machine; its requirement, which nothing else meets."""
    version += ".there" if "+" in version else "+there"
    information = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{information}/RECORD", "")
    return f"{name}=={version}"


def gather(wheels: Path, requirements: Sequence[object], there: Mapping[str, str], python: str) -> None:
    """Wheels of the requirements, and of what they need, into ``wheels``; none of what is ``there``."""
    with tempfile.TemporaryDirectory(prefix="carry-") as name:
        stubs = Path(name)
        pins = stubs / "there.txt"
        pins.write_text("".join(write_stub(stubs, *item) + "\n" for item in there.items()))
        _pip("wheel", "--wheel-dir", wheels, "--find-links", stubs, "--constraint", pins, *requirements, python=python)
        for stub in stubs.glob("*.whl"):
            (wheels / stub.name).unlink(missing_ok=True)


def build(folder: Path, torch: str, python: str, tag: str) -> Path:
    """Our wheel as `make dist` makes it, for torch ("torch==VERSION") and that Python, whose tag is ``tag``."""
    here = importlib.metadata.version("torch").split("+")[0]
    pin = folder / "torch.txt"
    pin.write_text(f"{torch}\n")
    isolation = ["--no-isolation"] if torch == f"torch=={here}" else []  # else in an environment with that torch
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, "-m", "build", *isolation, "--outdir", str(folder), str(ROOT)], capture_output=True, text=True,
        env=os.environ | {"PATH": path, "PIP_CONSTRAINT": str(pin), "FASHIONBERT_PYTHON": python}, check=False,
    )  # fmt: skip
    if done.returncode:
        print((done.stdout + done.stderr)[-4000:], file=sys.stderr)
        raise InputError("our wheel could not be built: what the build said last is above")
    (wheel,) = folder.glob("*.whl")
    if f"-{tag}-" not in wheel.name:
        tags = ["--python-tag", tag, "--abi-tag", tag]
        subprocess.run([sys.executable, "-m", "wheel", "tags", "--remove", *tags, str(wheel)], check=True)
        (wheel,) = folder.glob("*.whl")
    return wheel


def check_ours(wheel: Path) -> None:
    """InputError unless the package in ``wheel`` is this checkout's: rows are to bear its commit."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            held = {name: archive.read(name) for name in archive.namelist() if name.endswith(".py")}
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"--wheel {wheel}: cannot be read ({error}); `make dist` puts one into dist/") from error
    for path in sorted((ROOT / "fashionbert_fast").rglob("*.py")):
        if held.get(str(path.relative_to(ROOT))) != path.read_bytes():
            raise InputError(f"--wheel {wheel}: has another {path.relative_to(ROOT)} than this checkout; `make dist`")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: Path, facts: Mapping[str, object]) -> dict:
    """Put benchmarks/, install.py, README.md, the manifest and SHA256SUMS beside the wheels; what the manifest says."""
    from benchmarks.measure import commit

    copy_files(ROOT, [name for name in tracked_files(ROOT) if name.startswith("benchmarks/")], folder)
    (folder / "benchmarks" / "results").mkdir(exist_ok=True)
    (folder / "benchmarks" / "COMMIT").write_text(commit() + "\n")  # for the rows: there is no checkout there
    shutil.copyfile(ROOT / "benchmarks" / "gpu" / "carry_install.py", folder / "install.py")
    wheels = sorted((folder / "wheels").glob("*.whl"))
    packages = dict(wheel.name.split("-")[:2] for wheel in wheels)
    (ours,) = (wheel for wheel in wheels if wheel.name.startswith("fashionbert_fast-"))
    _, _, tag, _, platform = ours.stem.split("-")
    manifest = {
        "commit": commit(), "python": f"{tag[2]}.{tag[3:]}", "platform": platform,
        "cuda_operators": "fashionbert_fast/_cuda.so" in zipfile.ZipFile(ours).namelist(),
        **facts, "packages": packages,
    }  # fmt: skip
    write_json(folder / "manifest.json", manifest)
    (folder / "README.md").write_text(README.format(**manifest))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = "".join(f"{_sha256(path)}  {path.relative_to(folder)}\n" for path in files)
    (folder / "SHA256SUMS").write_text(sums)
    return manifest


def _interpreter(name: str) -> tuple[str, str]:
    """Path and wheel tag of a Python."""
    path = shutil.which(name)
    if path is None:
        raise InputError(f"--python {name}: no such program; give a Python of the other machine's version")
    program = "import sys; print('cp%d%d' % sys.version_info[:2])"
    tag = subprocess.run([path, "-c", program], capture_output=True, text=True, check=False).stdout.strip()
    if not tag.startswith("cp3"):
        raise InputError(f"--python {name}: {path} does not run as a Python")
    return path, tag


def carry(args: argparse.Namespace, work: Path) -> dict:
    """Fill ``work``, and name it ``args.out`` when it is whole; what its manifest says."""
    python, tag = _interpreter(args.python)
    there = read_there(args.there) if args.there else {}
    if args.without_torch:  # triton comes with every torch for CUDA, and must be that torch's
        there = {"torch": args.torch.split("==")[1], "triton": importlib.metadata.version("triton")} | there
    folder, built = work / "carried", work / "built"
    (folder / "wheels").mkdir(parents=True)
    built.mkdir()
    print("1/3 " + (f"our wheel: {args.wheel}" if args.wheel else "building our wheel, 5 to 10 minutes"), flush=True)
    ours = args.wheel or build(built, args.torch, python, tag)
    print("2/3 gathering wheels", flush=True)
    requirements: list[object] = [f"{ours}{OURS.removeprefix('fashionbert_fast')}", *TOOLS, *args.also]
    if "torch" not in there:
        requirements.append(args.torch)
    if "deepspeed" not in there:
        needs = importlib.metadata.requires("fashionbert_fast") or []
        needs = [need for need in needs if need.startswith("deepspeed")]
        _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", built, *needs)
        requirements += built.glob("deepspeed-*.whl")
    gather(folder / "wheels", requirements, there, python)
    print("3/3 hashing", flush=True)
    facts = {"torch": args.torch, "torch_carried": "torch" not in there, "install": [OURS, *TOOLS, *args.also]}
    manifest = seal(folder, facts)
    shutil.rmtree(args.out, ignore_errors=True)  # which was empty
    folder.rename(args.out)
    return manifest


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.carry", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    here = importlib.metadata.version("torch").split("+")[0]
    add(
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="new, or empty; 0.2 GB, 0.7 with torch, several for CUDA",
    )
    add("--torch", default=f"torch=={here}", metavar="torch==VERSION",
        help="what our library is built for, and what is carried (default: %(default)s, as here)")  # fmt: skip
    add("--without-torch", action="store_true",
        help="carry neither torch nor triton: the other machine's Python has them, torch 2.11 or later")  # fmt: skip
    add("--there", type=Path, metavar="FILE",
        help="what `pip list --format=freeze` printed on the other machine, for --keep-torch there: none of it is "
        "carried; leave a line out if pip says that it is too old for ours")  # fmt: skip
    add("--python", default=sys.executable, help="a Python of the version there (default: this one)")
    add("--wheel", type=Path, metavar="FILE", help="our wheel, of `make dist` in this very tree, in place of building")
    add("--also", nargs="+", default=[], metavar="NAME", help="more packages, as liger-kernel, a peer of the suite")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        if not re.fullmatch(r"torch==[\w.]+", args.torch):
            raise InputError(f"--torch {args.torch}: give one version, as torch==2.13.0")
        if args.wheel:
            check_ours(args.wheel)
        args.out = args.out.absolute()
        if args.out.is_file() or (args.out.is_dir() and any(args.out.iterdir())):
            raise InputError(f"--out {args.out}: is there and not empty; remove it or give another")
        check_writable(args.out / "manifest.json" if args.out.is_dir() else args.out)
        with tempfile.TemporaryDirectory(prefix=".carry-", dir=args.out.parent) as work:
            manifest = carry(args, Path(work))
    except InputError as error:
        print(f"carry: error: {error}", file=sys.stderr)
        return 2
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file()) / 1e6
    cuda = "with" if manifest["cuda_operators"] else "WITHOUT (no nvcc was found)"
    print(f"{args.out}: {size:,.0f} MB, {len(manifest['packages'])} wheels for Python {manifest['python']}, {cuda} "
          "CUDA operators; copy it to the other machine and run install.py there")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
