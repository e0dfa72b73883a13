"""The mutants fit the tree they are for, and the machinery that judges them kills, spares and takes back as it says."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path

import pytest

from fashionbert_fast.errors import InputError
from tests.mutants import MUTANTS
from tests.mutants import __main__ as command
from tests.mutants.board import BASELINE, Board
from tests.mutants.mutant import Mutant
from tests.mutants.workspace import FROM_OUTSIDE, NOT_BUILT, Outcome, Workspace

ROOT = Path(__file__).parent.parent.parent
LEAST = {"csrc": 15, "fashionbert_fast/kernels": 8, "fashionbert_fast/data": 20, "fashionbert_fast/model": 15,
         "fashionbert_fast/engine": 20, "fashionbert_fast/evaluation": 10, "fashionbert_fast/config.py": 4}  # fmt: skip


# The list -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_fits_the_tree_and_names_tests_that_are_there(mutant):
    assert mutant.complaint(ROOT) is None


def test_there_are_enough_of_every_part_of_the_package():
    names = Counter(mutant.name for mutant in MUTANTS)
    assert max(names.values()) == 1 and len(MUTANTS) >= 60
    for part, least in LEAST.items():
        assert sum(mutant.file.startswith(part) for mutant in MUTANTS) >= least, part


def test_quick_is_about_a_fifth_and_always_the_same():
    quick = {mutant.name for mutant in MUTANTS if mutant.is_quick}
    assert quick == {mutant.name for mutant in command.chosen(True, [])}
    assert 0.1 * len(MUTANTS) < len(quick) < 0.3 * len(MUTANTS)


HEAD = {"device": "a machine", "versions": {}, "commit": "abc"}


# The machinery, on a tree of two files --------------------------------------------------------------------------------
def _mutant(name: str = "wrong-sum", new: str = "return a - b", file: str = "sums.py") -> Mutant:
    return Mutant(name, file, "return a + b", new, ("test_sums.py",))


@pytest.fixture
def tree(tmp_path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "sums.py").write_text("def add(a, b):\n    return a + b\n")
    (tree / "test_sums.py").write_text(
        "from sums import add\n\ndef test_two():\n    assert add(2, 3) == 5\n\n"
        "def test_never_reached_after_a_failure():\n    open('reached', 'w').close()\n"
    )
    return tree


@pytest.fixture
def space(tree, tmp_path) -> Workspace:
    return Workspace(tree, ["sums.py", "test_sums.py"], tmp_path / "copy")


def test_a_break_is_killed_by_name_and_taken_back(space, tree):
    outcome = space.judge(_mutant(), 60)
    assert outcome.killed_by == "test_sums.py::test_two"
    assert not (space.directory / "reached").exists()
    assert (space.directory / "sums.py").read_text() == (tree / "sums.py").read_text()


def test_what_no_test_notices_survives(space):
    assert space.judge(_mutant(new="return b + a"), 60).killed_by is None


def test_compiled_files_of_a_break_are_not_used_after_it(space):
    """Same size, perhaps the same second: Python would take the one's bytecode for the other's."""
    assert space.test(["test_sums.py"], 60, write=True).killed_by is None
    assert space.judge(_mutant(), 60).killed_by
    assert space.test(["test_sums.py"], 60).killed_by is None


def test_too_long_is_killed_with_all_it_started(space):
    outcome = space.judge(_mutant(new="import time; time.sleep(600)"), 3)
    assert outcome.killed_by == "time limit" and outcome.seconds < 60


def test_an_import_that_fails_is_killed(space):
    assert space.judge(_mutant(new="return ("), 60).killed_by


def test_what_is_stopped_or_ended_from_outside_is_no_kill(space, tmp_path):
    """An interrupted run must not write down that a test has failed."""
    ended = space.judge(_mutant(new="import os; os.kill(os.getpid(), 9)"), 60)
    board = Board(tmp_path / "board.json", HEAD)
    board.add(_mutant(), ended)
    assert ended.killed_by == FROM_OUTSIDE and board.survivors()
    threading.Timer(1.5, space.stop).start()
    with pytest.raises(KeyboardInterrupt):
        space.judge(_mutant(new="import time; time.sleep(600)"), 60)


def test_a_mutant_that_does_not_fit_is_named(tree):
    assert _mutant().complaint(tree) is None
    assert "is not there" in _mutant(file="other.py").complaint(tree)
    assert "changes nothing" in _mutant(new="return a + b").complaint(tree)
    assert "0 times" in Mutant("gone", "sums.py", "return a * b", "", ("test_sums.py",)).complaint(tree)
    assert "2 times" in Mutant("twice", "test_sums.py", "def ", "", ("test_sums.py",)).complaint(tree)
    gone = Mutant("gone", "sums.py", "return a + b", "", ("test_sums.py::test_three",))
    assert "test_three is not there" in gone.complaint(tree)
    assert "names no test" in Mutant("untested", "sums.py", "return a + b", "", ()).complaint(tree)
    with pytest.raises(InputError, match="no such mutant"):
        command.chosen(False, ["nonsense"])


def _judge(tree: Path, board: Board, mutants: list[Mutant], monkeypatch) -> bool:
    monkeypatch.setattr(command, "ROOT", tree)
    monkeypatch.setattr(command, "tracked_files", lambda root: ["sums.py", "test_sums.py"])
    (tree / "fashionbert_fast").mkdir(exist_ok=True)
    return command.run(mutants, board, 60)


def test_the_scoreboard_holds_every_row_and_a_second_run_goes_on(tree, tmp_path, monkeypatch, capsys):
    mutants = [_mutant(), _mutant("harmless", "return b + a")]
    path = tmp_path / "board.json"
    assert _judge(tree, Board(path, HEAD), mutants[:1], monkeypatch)
    again = Board(path, HEAD)
    assert again.take_up()
    assert _judge(tree, again, mutants, monkeypatch)
    written = json.loads(path.read_text())
    rows = {row["proof"]: row for row in written["rows"]}
    assert list(rows) == [BASELINE, "wrong-sum", "harmless", "killed"]
    assert (rows["wrong-sum"]["k"], rows["wrong-sum"]["killed_by"]) == (1, "test_sums.py::test_two")
    assert (rows["harmless"]["met"], rows["killed"]["k"], rows["killed"]["n"]) == (False, 1, 2)
    assert not rows["killed"]["met"]  # half is not 95%
    assert capsys.readouterr().out.count("wrong-sum") == 1  # judged once
    assert not Board(path, HEAD | {"commit": "abd"}).take_up()


def test_a_tree_whose_tests_fail_proves_nothing(tree, tmp_path, monkeypatch):
    (tree / "sums.py").write_text("def add(a, b):\n    return a + b + 1\n")
    board = Board(tmp_path / "board.json", HEAD)
    assert not _judge(tree, board, [_mutant(new="return a - b")], monkeypatch)
    assert not board.rows[BASELINE]["met"] and not board.mutants()


def test_95_percent_is_enough_and_what_does_not_compile_is_no_kill(tmp_path):
    board = Board(tmp_path / "board.json", HEAD)
    for i in range(19):
        board.add(_mutant(f"killed {i}"), Outcome("a test", 1.0))
    board.add(_mutant("survivor"), Outcome(None, 1.0))
    assert board.summary() == {"proof": "killed", "k": 19, "n": 20, "met": True}
    board.add(_mutant("not built"), Outcome(NOT_BUILT, 1.0))
    assert board.summary() == {"proof": "killed", "k": 19, "n": 21, "met": False}


def test_the_command_line(tmp_path, capsys):
    assert command.main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(MUTANTS)
    assert command.main([]) == 2
    assert "--json" in capsys.readouterr().err
    assert command.main(["--json", str(tmp_path / "nowhere" / "board.json")]) == 2
    with pytest.raises(SystemExit):
        command.main(["--help"])
    assert "python -m tests.mutants --json" in capsys.readouterr().out
