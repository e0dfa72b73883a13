"""Do the tests notice? Breaks the package on purpose, a break at a time, and runs the tests nearest to it:

    python -m tests.mutants --json mutants.json            # all; within 90 minutes on two cores
    python -m tests.mutants --json mutants.json --quick    # a fixed fifth; within 15
    python -m tests.mutants --list

Exit status 0: at least 95% are killed; 1: more survive, or the tests fail on the unbroken tree; 2: bad input.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.tree import ROOT, take_libraries, tracked_files
from fashionbert_fast.errors import InputError
from fashionbert_fast.files import check_writable
from fashionbert_fast.progress import progress_bar
from tests.mutants import MUTANTS
from tests.mutants.board import BASELINE, Board
from tests.mutants.mutant import Mutant
from tests.mutants.workspace import Outcome, Workspace

WORKERS = 2  # a copy of the tree and a core each


def parser() -> argparse.ArgumentParser:
    description, _, epilog = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants", description=description, epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--json", type=Path, metavar="FILE", help="the scoreboard, written after every mutant")
    add("--quick", action="store_true", help="a fifth of them, always the same")
    add("--only", nargs="+", default=[], metavar="NAME", help="these")
    add("--list", action="store_true", help="print names, files and tests, and do nothing")
    add("--continue", dest="go_on", action="store_true", help="skip what FILE has for this commit (a clean checkout)")
    add("--seconds", type=float, default=400.0, metavar="S",
        help="tests that take longer count as failed (default: %(default)s)")  # fmt: skip
    return parser


def chosen(quick: bool, only: Sequence[str]) -> list[Mutant]:
    """The mutants asked for, all of which must fit the tree. InputError naming what does not."""
    known = {mutant.name: mutant for mutant in MUTANTS}
    unknown = [name for name in only if name not in known]
    if unknown:
        raise InputError(f"--only {unknown[0]}: no such mutant; --list has their names")
    mutants = [known[name] for name in only] or [mutant for mutant in MUTANTS if mutant.is_quick or not quick]
    complaints = [complaint for mutant in mutants if (complaint := mutant.complaint(ROOT))]
    if complaints:
        raise InputError(f"{complaints[0]} ({len(complaints)} of {len(mutants)} do not fit the tree); mend the list")
    return mutants


def union_of_tests(mutants: Sequence[Mutant]) -> list[str]:
    """Every test that is named, once: a node id only where its file is not named as a whole."""
    named = dict.fromkeys(test for mutant in mutants for test in mutant.tests)
    return sorted(test for test in named if "::" not in test or test.split("::")[0] not in named)


class Runner:
    """Judges mutants in `WORKERS` copies of the tree at once. The first copy alone can build, so it takes native ones
    first; the others take what needs no building."""

    def __init__(self, mutants: Sequence[Mutant], board: Board, directory: Path, seconds: float) -> None:
        self.board, self.seconds = board, seconds
        self.native = deque(mutant for mutant in mutants if mutant.is_native)
        self.other = deque(mutant for mutant in mutants if not mutant.is_native)
        files = tracked_files(ROOT)
        self.spaces = [Workspace(ROOT, files, directory / f"copy-{i}") for i in range(WORKERS)]
        self.lock = threading.Lock()

    def prepare(self) -> None:
        """The libraries of all copies: built from the tree where one will be broken, else those it has."""
        first, *others = self.spaces
        if self.native:
            first.build()
        else:
            take_libraries(ROOT, first.directory)
        for space in others:
            take_libraries(first.directory, space.directory)

    def baseline(self, tests: Sequence[str]) -> list[str]:
        """The named tests that fail on the unbroken tree."""
        shares = [tests[i :: len(self.spaces)] for i in range(len(self.spaces))]
        outcomes: list[Outcome] = []

        def run(space: Workspace, share: Sequence[str]) -> None:
            if share:
                outcomes.append(space.test(share, 7200, all_of_them=True, write=True))

        self._in_threads(run, list(zip(self.spaces, shares, strict=True)))
        for outcome in outcomes:
            if outcome.killed_by:
                print(outcome.output[-4000:], file=sys.stderr)
        return [outcome.killed_by for outcome in outcomes if outcome.killed_by]

    def judge_all(self, after: Callable[[Mutant, Outcome], None]) -> None:
        """Every mutant once; ``after`` is called with each outcome, one at a time."""

        def work(space: Workspace, may_build: bool) -> None:
            while True:
                with self.lock:
                    queue = self.native if may_build and self.native else self.other
                    if not queue:
                        return
                    mutant = queue.popleft()
                outcome = space.judge(mutant, self.seconds)
                with self.lock:
                    after(mutant, outcome)

        self._in_threads(work, [(space, i == 0) for i, space in enumerate(self.spaces)])

    def _in_threads(self, function: Callable, arguments: list[tuple]) -> None:
        with ThreadPoolExecutor(len(arguments)) as pool:
            futures = [pool.submit(function, *each) for each in arguments]
            try:
                for future in futures:
                    future.result()
            except BaseException:  # one failed or the user gave up: the others must not run on
                for space in self.spaces:
                    space.stop()
                raise


def run(mutants: Sequence[Mutant], board: Board, seconds: float) -> bool:
    """Judge ``mutants`` that ``board`` has not; False where the unbroken tree fails its tests."""
    remaining = [mutant for mutant in mutants if mutant.name not in board.rows]
    if not remaining:
        return True
    with TemporaryDirectory(prefix="mutants-") as directory, progress_bar() as bar:
        task = bar.add_task("copying and building", total=len(remaining))
        runner = Runner(remaining, board, Path(directory), seconds)
        runner.prepare()
        if not board.rows.get(BASELINE, {}).get("met"):
            bar.update(task, description="the unbroken tree")
            broken = runner.baseline(union_of_tests(mutants))
            board.add_baseline(broken)
            if broken:
                print(f"the unbroken tree fails {', '.join(broken)}; mend that first", file=sys.stderr)
                return False
        bar.update(task, description="mutants")

        def after(mutant: Mutant, outcome: Outcome) -> None:
            board.add(mutant, outcome)
            bar.advance(task)
            row = board.rows[mutant.name]
            print(f"{'killed' if row['met'] else 'SURVIVED':8} {row['seconds']:6.1f} s  {mutant.name}"
                  f"  {outcome.killed_by or ''}", flush=True)  # fmt: skip

        runner.judge_all(after)
    return True


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM):  # also in the background, where a shell has SIGINT ignored
        signal.signal(number, _interrupt)
    try:
        mutants = chosen(args.quick, args.only)
        if args.list:
            for mutant in mutants:
                print(f"{mutant.name:40} {mutant.file:45} {' '.join(mutant.tests)}")
            return 0
        if args.json is None:
            raise InputError("--json FILE: missing; the scoreboard goes there")
        check_writable(args.json)
        board = Board(args.json, head())
        if args.go_on and not board.take_up():
            print(f"{args.json}: nothing of commit {board.head['commit']} to go on from; beginning anew", flush=True)
        whole = run(mutants, board, args.seconds)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {args.json} has what was found, --continue goes on", file=sys.stderr)
        return 2
    summary = board.summary()
    print(f"{summary['k']} of {summary['n']} killed")
    for row in board.survivors():
        print(f"survived: {row['proof']} ({row['file']}) {row['killed_by'] or ''}")
    return 0 if whole and summary["met"] else 1


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def head() -> dict:
    """Device, versions and commit of the scoreboard."""
    import torch

    from benchmarks.measure import commit, device_name
    from fashionbert_fast.commands.doctor import installed_versions

    return {"device": device_name(torch.device("cpu")), "versions": installed_versions(), "commit": commit()}


if __name__ == "__main__":
    sys.exit(main())
