"""Everything a GPU can prove and time, in one command, most valuable first:

    python -m benchmarks.gpu.gpu_suite --json benchmarks/results/h100.json              # the first 8 minutes
    python -m benchmarks.gpu.gpu_suite --json benchmarks/results/h100.json --continue   # what did not fit

Each part (`--list`) has a process of its own and a time limit: one that crashes, hangs or runs out of memory costs no
other. Rows are in FILE as soon as they are measured. FILE.d holds each part's log, and what the profile wrote. `--dry`
runs the same parts on a CPU at toy sizes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import TYPE_CHECKING

from fashionbert_fast.errors import InputError
from fashionbert_fast.files import check_writable, read_json, write_json
from fashionbert_fast.progress import progress_bar

if TYPE_CHECKING:
    from benchmarks.gpu.gpu_parts import Part

SKIPPED, FAILED = 3, 1  # how a part's process ends
POLL = 0.1  # seconds
PARTS = "benchmarks.gpu.gpu_parts"


def run_part(module: str, name: str, lines: Path, dry: bool) -> None:
    """A part of ``module.PARTS``, in this process."""
    import torch

    from benchmarks.gpu.gpu_parts import Teller

    part = next(part for part in importlib.import_module(module).PARTS if part.name == name)
    part.run(Teller(lines), torch.device("cpu" if dry else "cuda"), dry)


def _child(module: str, name: str, lines: str, log: str, dry: bool) -> None:
    """A part's process: its own group, so that whatever it starts ends with it; what it says goes to its log."""
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    from benchmarks.gpu.gpu_parts import Skipped

    try:
        run_part(module, name, Path(lines), dry)
    except Skipped as skipped:
        print(f"skipped: {skipped}", flush=True)
        os._exit(SKIPPED)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(FAILED)
    sys.stdout.flush()
    os._exit(0)  # not by way of destructors, which may hang where a GPU does


@dataclass
class Suite:
    """FILE as it stands. ``result``: what is in it."""

    path: Path
    result: dict
    dry: bool
    module: str = PARTS  # whose PARTS are run

    @property
    def folder(self) -> Path:
        return self.path.with_name(self.path.name + ".d")

    @classmethod
    def begin(cls, path: Path, dry: bool, goes_on: bool) -> Suite:
        """A new FILE, or (``goes_on``) one that is there."""
        from benchmarks.measure import commit, installed_versions

        if goes_on and path.exists():
            result = read_json(path)
            if not isinstance(result.get("parts"), dict):
                raise InputError(f"{path}: no file of the GPU suite; give another, or leave --continue out")
        else:
            result = {"device": _device(dry), "versions": installed_versions(), "commit": commit(),
                      "rows": [], "proofs": [], "parts": {}}  # fmt: skip
        suite = cls(path, result, dry)
        suite.folder.mkdir(exist_ok=True)
        return suite

    def ended(self, name: str) -> bool:
        """Whether the part came to an end by itself: done, skipped or failed."""
        return self.result["parts"].get(name, {}).get("status") in ("done", "skipped", "failed")

    def fold(self, name: str, told: Sequence[str]) -> None:
        """Put what a part told into FILE, in place of what the part of that name told before."""
        for kind in ("row", "proof"):
            kept = [entry for entry in self.result[f"{kind}s"] if entry.get("part") != name]
            new = [json.loads(line) for line in told]
            self.result[f"{kind}s"] = kept + [line[kind] | {"part": name} for line in new if kind in line]
        write_json(self.path, self.result)

    def end(self, name: str, status: str, seconds: float, detail: str, told: Sequence[str]) -> None:
        self.result["parts"][name] = {"status": status, "seconds": round(seconds, 1), "detail": detail}
        self.fold(name, told)
        if status in ("failed", "killed"):
            proof = {"proof": f"{name} ran", "k": 0, "n": 1, "met": False, "detail": detail[-1500:], "part": name}
            self.result["proofs"].append(proof)
            write_json(self.path, self.result)


def _device(dry: bool) -> str:
    """Asked of the driver's own tool where there is one: this process must not hold the GPU."""
    import subprocess

    import torch

    from fashionbert_fast.profiling.device import device_name

    if dry:
        return device_name(torch.device("cpu"))
    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return torch.cuda.get_device_name()


def _whole_lines(path: Path) -> list[str]:
    """What a part told so far, without a line it is about to write."""
    text = path.read_text() if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


def run_one(suite: Suite, part: Part, context: SpawnContext | ForkServerContext) -> str:
    """Run a part to its end or its limit; its status."""
    stem = suite.folder / part.name.replace(" ", "_")
    lines, log = stem.with_suffix(".jsonl"), stem.with_suffix(".log")
    for path in (lines, log):
        path.unlink(missing_ok=True)
    process = context.Process(target=_child, args=(suite.module, part.name, str(lines), str(log), suite.dry))
    start, told = time.monotonic(), []
    process.start()
    killed = False
    try:
        while process.is_alive():
            process.join(POLL)
            now = _whole_lines(lines)
            if len(now) > len(told):
                told = now
                suite.fold(part.name, told)
            if time.monotonic() - start > part.seconds:
                killed = True
                break
    finally:
        _end_group(process)
    seconds, told = time.monotonic() - start, _whole_lines(lines)
    said = log.read_text(errors="replace").strip() if log.exists() else ""
    if killed:
        status, detail = "killed", f"at its limit of {part.seconds} s; {said[-800:]}"
    elif process.exitcode == SKIPPED:
        status, detail = "skipped", said.rsplit("skipped: ", 1)[-1]
    elif process.exitcode == 0:
        status, detail = "done", ""
    else:
        code = process.exitcode or 0
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        status, detail = "failed", f"{how}; {said[-1200:]}"
    suite.end(part.name, status, seconds, detail, told)
    return status


def _end_group(process) -> None:
    """Kill whatever of the part's process group still runs."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # gone, or it had not become a group's leader yet
        process.kill()
    process.join()


def run_suite(suite: Suite, wanted: Sequence[Part], minutes: float) -> None:
    """Each part in turn, while time is left for a new one."""
    # A process that has looked for a GPU must not fork; without one it may, and imports once.
    context = multiprocessing.get_context("forkserver" if suite.dry else "spawn")
    if suite.dry:
        context.set_forkserver_preload([PARTS, "deepspeed", "transformers"])
    end = time.monotonic() + 60 * minutes
    with progress_bar() as bar:
        task = bar.add_task("GPU suite", total=len(wanted))
        for part in wanted:
            bar.update(task, detail=f"{part.name}: {part.tells}")
            if time.monotonic() > end:
                suite.result["parts"][part.name] = {"status": "not run", "seconds": 0.0, "detail": "no time was left"}
                write_json(suite.path, suite.result)
            else:
                status = run_one(suite, part, context)
                entry = suite.result["parts"][part.name]
                print(
                    f"{part.name}: {status}, {entry['seconds']} s {entry['detail'].splitlines()[-1:] or ''}", flush=True
                )
            bar.advance(task)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.gpu_suite",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--json", type=Path, metavar="FILE", help="where rows and proofs go, as they come")
    add("--minutes", type=float, default=8, metavar="M", help="begin no part after so many (default: %(default)s)")
    add("--continue", dest="goes_on", action="store_true", help="go on with FILE: parts that have not ended")
    add("--again", action="store_true", help="with --continue: those that failed, too")
    add("--only", nargs="+", default=(), metavar="PART", help="these parts, see --list")
    add("--list", action="store_true", help="the parts, what each tells and its limit")
    add("--dry", action="store_true", help="the same on a CPU at toy sizes: does the suite itself work?")
    add("--part", metavar="PART", help=argparse.SUPPRESS)  # one, in this process: what compute-sanitizer runs
    add("--lines", type=Path, help=argparse.SUPPRESS)
    return parser


def _wanted(args: argparse.Namespace, suite: Suite) -> list[Part]:
    parts = importlib.import_module(suite.module).PARTS
    names = [part.name for part in parts]
    for name in args.only:
        if name not in names:
            raise InputError(f"--only {name!r}: no such part; there are {', '.join(names)}")
    chosen = [part for part in parts if not args.only or part.name in args.only]
    if args.again:
        return [
            part for part in chosen if suite.result["parts"].get(part.name, {}).get("status") not in ("done", "skipped")
        ]
    return [part for part in chosen if not suite.ended(part.name)]


def main(argv: list[str] | None = None) -> int:
    """0 where every part that ran was done or skipped and every proof holds, 1 else, 2 on bad input."""
    args = _parser().parse_args(argv)
    if args.part:
        run_part(PARTS, args.part, args.lines, args.dry)
        return 0
    try:
        if args.list:
            for part in importlib.import_module(PARTS).PARTS:
                print(f"{part.name:36} {part.seconds:4} s  {part.tells}")
            return 0
        if args.json is None:
            raise InputError("--json FILE is not given: rows are written there as they come")
        check_writable(args.json)
        import torch

        if not args.dry and not torch.cuda.is_available():
            raise InputError(
                "there is no CUDA device here; --dry tries the suite on a CPU, `fashionbert bench` measures"
            )
        suite = Suite.begin(args.json, args.dry, args.goes_on)
        wanted = _wanted(args, suite)
    except InputError as error:
        print(f"gpu_suite: error: {error}", file=sys.stderr)
        return 2
    run_suite(suite, wanted, args.minutes)
    good = all(proof["met"] for proof in suite.result["proofs"])
    statuses = [entry["status"] for entry in suite.result["parts"].values()]
    print(f"{args.json}: {len(suite.result['rows'])} rows, {len(suite.result['proofs'])} proofs, "
          + ", ".join(f"{statuses.count(status)} {status}" for status in sorted(set(statuses))))  # fmt: skip
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
