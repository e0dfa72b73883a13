"""`fashionbert profile`: where a training step's time goes, on this machine, with this configuration."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from fashionbert_fast.config import SHIPPED, Config, load_config
from fashionbert_fast.errors import InputError
from fashionbert_fast.files import check_writable

EPILOG = """examples:
  fashionbert profile --config base data.store=stores/mine train.output=profiles/mine
  fashionbert profile --config mine.yaml train.zero_stage=2 --warmup 10 --steps 5
  fashionbert profile --nsys profiles/mine/nsys.sqlite --out profiles/nsys

Into train.output: profile.html (the report), profile.json, trace.json.gz (for ui.perfetto.dev), roofline.json and
pictures. Where nsys or ncu is installed beside a GPU, the same run is watched by it too, unless --no-nsight; else the
report has the command lines."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    files = f"YAML file, or {' or '.join(SHIPPED)}, which come along"
    parser.add_argument("--config", metavar="FILE", help=files)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that win over the file's")
    parser.add_argument("--warmup", type=int, default=5, metavar="N", help="steps before (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5, metavar="M", help="steps captured (default: %(default)s)")
    parser.add_argument(
        "--nsys", type=Path, metavar="FILE", help="report on an Nsight Systems export (.sqlite) instead"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="with --nsys: where the report goes (default: beside it)"
    )
    parser.add_argument("--no-nsight", action="store_true", help="do not run nsys and ncu where they are installed")
    parser.add_argument(
        "--ranges-only", action="store_true",
        help="only NVTX ranges and cudaProfilerStart/Stop, for a profiler outside: no trace, no report",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    for name in ("warmup", "steps"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} {getattr(args, name)}: must be 1 or more")
    if args.nsys is not None:
        if args.config is not None or args.overrides:
            raise InputError("--nsys: reads an export, so it goes without --config and overrides")
        return _report_nsys(args)
    if args.config is None:
        raise InputError("--config is not given: a YAML file or " + " or ".join(SHIPPED) + ", or --nsys FILE.sqlite")
    if args.out is not None:
        raise InputError("--out: goes with --nsys; a profile goes to train.output")
    return _profile(args, load_config(args.config, args.overrides))


def _report_nsys(args: argparse.Namespace) -> int:
    from fashionbert_fast.profiling.nsight import read_nsys
    from fashionbert_fast.profiling.report import Profile, write_profile
    from fashionbert_fast.profiling.timeline import break_down

    if not args.nsys.is_file():
        raise InputError(f"{args.nsys}: no such file; make it with `nsys export --type sqlite`")
    directory = args.out or args.nsys.parent
    directory.mkdir(parents=True, exist_ok=True)
    check_writable(directory / "profile.json")
    timeline = read_nsys(args.nsys)
    profile = Profile("GPU, by Nsight Systems", {}, break_down(timeline), timeline, [("read from", str(args.nsys))])
    _show(profile)
    print(f"{write_profile(profile, directory)} written")
    return 0


def _profile(args: argparse.Namespace, config: Config) -> int:
    from fashionbert_fast.distributed import barrier, init_distributed, is_main, shutdown
    from fashionbert_fast.engine.build import build
    from fashionbert_fast.engine.capture import capture, capture_ranges, steps_needed
    from fashionbert_fast.profiling.roofline import measure_ceilings

    directory = Path(config.train.output)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{directory}: cannot be written ({error.strerror}); set train.output elsewhere") from error
    check_writable(directory / "profile.json")
    config.train.steps = max(config.train.steps, steps_needed(args.warmup, args.steps))
    device = init_distributed()
    try:
        barrier()
        engine = build(config, directory, device)
        if args.ranges_only:
            capture_ranges(engine, args.warmup, args.steps)
            return 0
        ceilings = measure_ceilings(device)
        captured = capture(engine, args.warmup, args.steps, directory)
        if is_main():
            commands = _nsight(args, directory, runs=device.type == "cuda" and not args.no_nsight)
            _write(engine, captured, ceilings, commands, directory)
        barrier()
    finally:
        shutdown()
    return 0


def _nsight(args: argparse.Namespace, directory: Path, *, runs: bool) -> dict[str, str]:
    """Tool -> its command line around this very profile; executed where it is installed."""
    from fashionbert_fast.profiling.nsight import as_shell, commands

    program = [
        sys.executable, "-m", "fashionbert_fast", "profile", "--ranges-only", "--config", args.config,
        f"--warmup={args.warmup}", f"--steps={args.steps}", *args.overrides,
    ]  # fmt: skip
    lines = commands(program, directory)
    for tool, line in lines.items():
        if runs and shutil.which(tool):
            print(f"{tool} watches the same run", flush=True)
            status = subprocess.run(line, check=False, capture_output=True, text=True)
            (directory / f"{tool}.log").write_text(status.stdout + status.stderr)
            if status.returncode:
                print(f"{tool} failed with {status.returncode}: see {directory / f'{tool}.log'}", file=sys.stderr)
    return {tool: as_shell(line) for tool, line in lines.items()}


def _write(run, captured, ceilings, commands: dict[str, str], directory: Path) -> None:
    from fashionbert_fast.commands.doctor import installed_versions
    from fashionbert_fast.engine.build import DTYPES
    from fashionbert_fast.engine.capture import TRACE
    from fashionbert_fast.profiling.device import device_name
    from fashionbert_fast.profiling.report import Profile, write_profile
    from fashionbert_fast.profiling.roofline import point
    from fashionbert_fast.profiling.timeline import KernelRow, break_down
    from fashionbert_fast.profiling.trace import read_trace

    timeline = read_trace(directory / TRACE)
    breakdown = break_down(timeline, captured.work)
    for row in (*breakdown.kernels, *breakdown.operators):
        count = captured.work.get(row.name)
        if count is not None:
            row.flops, row.bytes = count.flops * breakdown.steps, count.bytes * breakdown.steps
    dtype = str(DTYPES[run.config.train.precision]).removeprefix("torch.")
    dtype = dtype if dtype in ceilings.matmul else "bfloat16"
    seconds = captured.plain_seconds
    total = sum(count.bytes for count in captured.work.values())
    step = KernelRow("step", 1, seconds, captured.useful_flops, total)
    rows = [step, *breakdown.operators[:15]]
    points = [found for row in rows if (found := point(row, ceilings, dtype)) is not None]
    facts = [
        ("configuration", f"{run.config.train.precision}, ZeRO-{run.config.train.zero_stage}, "
                          f"{run.config.train.micro_batch_size} pairs x {run.config.train.gradient_accumulation_steps}"
                          f" x {run.world_size} processes"),
        ("useful FLOPs of the matmul ceiling", f"{captured.useful_flops / seconds / ceilings.matmul[dtype]:.1%}"),
        ("bytes of a step's operators of the copy bandwidth", f"{total / seconds / ceilings.bandwidth:.1%}"),
        ("what capturing costs", f"{breakdown.wall_seconds / breakdown.steps / seconds - 1:+.1%}"),
    ]  # fmt: skip
    profile = Profile(
        device_name(run.device), installed_versions(), breakdown, timeline, facts, seconds, dtype, ceilings, points,
        commands,
    )  # fmt: skip
    _show(profile)
    print(f"{write_profile(profile, directory)} written; open {directory / TRACE} in Perfetto")


def _show(profile) -> None:
    from rich.console import Console
    from rich.table import Table

    b = profile.breakdown
    table = Table("phase", "host ms", "of the step", "device ms", "idle ms", title=profile.device, title_justify="left")
    for row in b.phases:
        host, device, idle = (x / b.steps * 1e3 for x in (row.host_seconds, row.device_seconds, row.idle_seconds))
        table.add_row(
            row.name, f"{host:,.2f}", f"{row.host_seconds / b.wall_seconds:.1%}", f"{device:,.2f}", f"{idle:,.2f}"
        )
    Console().print(table)
    print(f"{b.explained:.1%} of the wall time in a named phase; idle {b.idle_share:.1%}")
