"""Installs what this folder carries, without a network, and says how to run the GPU suite.

    python3 install.py                  # an environment in env/, from this folder alone
    python3 install.py --keep-torch     # one that sees the packages of the Python that runs this, and keeps its torch

Every file is compared with SHA256SUMS first. Nothing of that Python is changed: remove env/, and all is as it was.
"""

# benchmarks.gpu.carry puts this file into its folder as install.py. It needs only Python's own library. On an older
# Python than ours it says so.
import argparse
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent


class Refused(Exception):
    """What is wrong, and the remedy, in one line."""


def check_python(manifest):
    """This Python must be the one that the wheels are for."""
    python = "{}.{}".format(*sys.version_info[:2])
    platform = sysconfig.get_platform().replace("-", "_")
    if (python, platform) != (manifest["python"], manifest["platform"]):
        raise Refused(
            f"this folder is for Python {manifest['python']} on {manifest['platform']}, and this is Python {python} on "
            f"{platform}: run it by python{manifest['python']}, or gather another folder, on a machine with a network, "
            f"by `python -m benchmarks.gpu.carry --python python{python}`"
        )


def check_files(folder):
    """Every file must be the one that was gathered."""
    sums = folder / "SHA256SUMS"
    lines = [line.split("  ", 1) for line in sums.read_text().splitlines()] if sums.is_file() else [["", sums.name]]
    for expected, name in lines:
        path, found = folder / name, hashlib.sha256()
        if not path.is_file():
            raise Refused(f"{path}: is missing; copy the folder again")
        with path.open("rb") as file:
            for piece in iter(lambda: file.read(2**20), b""):
                found.update(piece)
        if found.hexdigest() != expected:
            raise Refused(f"{path}: is damaged, its SHA-256 is not the one in SHA256SUMS; copy it again")


def torch_here():
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        raise Refused(f"--keep-torch: {sys.executable} has no torch; run this by the Python that has it") from None


def install(folder, manifest, env, keep_torch):
    """The environment ``env``, by pip from the folder's wheels alone."""
    torch = torch_here() if keep_torch else None
    venv.EnvBuilder(symlinks=True).create(env)  # without pip, which Debian's Python may lack: ours runs as it lies
    python = env / "bin" / "python"
    constraints = env / "constraints.txt"
    constraints.write_text(f"torch=={torch}\n" if torch else "")
    if torch:  # not --system-site-packages: this Python may be an environment itself, whose packages that would miss
        packages = python.parent.parent / "lib" / f"python{manifest['python']}" / "site-packages"
        theirs = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        (packages / "beside.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in theirs))
    wheels = folder / "wheels"
    (pip,), (ours,) = wheels.glob("pip-*.whl"), wheels.glob("fashionbert_fast-*.whl")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    environment["PIP_CONFIG_FILE"] = os.devnull
    command = [python, pip / "pip", "install", "--quiet", "--no-index", "--find-links", wheels]
    command += ["--only-binary", ":all:", "--constraint", constraints]
    for words in (["--no-deps", "--force-reinstall", ours], manifest["install"]):  # ours, whatever this Python has
        if subprocess.run([str(word) for word in command + words], env=environment).returncode:
            shutil.rmtree(env)
            raise Refused("pip could not install: what it said is above; nothing is left behind")


def note_compiler():
    missing = [name for name in ("gcc", "g++") if shutil.which(name) is None]
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        missing.append("Python.h (python3-dev)")
    if missing:
        print(
            f"note: {', '.join(missing)} not found here: Triton and DeepSpeed compile small helpers when they first run"
        )


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--env", type=Path, default=HERE / "env", help="a folder that is not there (default: %(default)s)"
    )
    parser.add_argument("--keep-torch", action="store_true", help="with the packages of this Python, and its torch")
    args = parser.parse_args(argv)
    env = args.env.absolute()
    try:
        if env.exists():
            raise Refused(f"{env}: is there; remove it or give another by --env")
        print("1/3 comparing files with SHA256SUMS", flush=True)
        check_files(HERE)
        manifest = json.loads((HERE / "manifest.json").read_text())
        check_python(manifest)
        if not (manifest["torch_carried"] or args.keep_torch):
            raise Refused("no torch is in this folder: run it by the Python that has one, with --keep-torch")
        print(f"2/3 installing into {env}, a minute or two", flush=True)
        install(HERE, manifest, env, args.keep_torch)
    except Refused as error:
        print(f"install: error: {error}", file=sys.stderr)
        return 2
    print("3/3 fashionbert doctor", flush=True)
    path = os.pathsep.join([str(env / "bin"), os.environ.get("PATH", "")])
    status = subprocess.run([str(env / "bin" / "fashionbert"), "doctor"], env=dict(os.environ, PATH=path)).returncode
    if status:
        print("install: error: it is installed, but doctor failed: see above", file=sys.stderr)
        return status
    note_compiler()
    print(f"\ncd '{HERE}'\n'{env / 'bin' / 'python'}' -m benchmarks.gpu.gpu_suite --json gpu.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
