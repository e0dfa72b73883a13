"""The GPU suite: a part that goes wrong costs no other; the whole of it runs on a CPU at toy sizes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import gpu_cases, gpu_suite
from benchmarks.gpu.gpu_parts import PARTS
from fashionbert_fast.operators import OPERATORS

sys.path.insert(0, str(Path(__file__).parent))  # for faulty_parts, here and in the processes of parts
import faulty_parts

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """What the suite wrote of the faulty parts."""
    path = tmp_path_factory.mktemp("suite") / "x.json"
    suite = gpu_suite.Suite.begin(path, True, False)
    suite.module = "faulty_parts"
    gpu_suite.run_suite(suite, faulty_parts.PARTS, 5)
    return path


def test_a_part_that_goes_wrong_costs_no_row(faulty):
    written = json.loads(faulty.read_text())
    statuses = {name: entry["status"] for name, entry in written["parts"].items()}
    assert statuses == {
        "good": "done", "aborts": "failed", "hangs": "killed", "raises": "failed", "skips": "skipped",
        "torn": "failed", "last": "done",
    }  # fmt: skip
    assert [row["value"] for row in written["rows"]] == [1, 2, 3, 4, 5, 1]
    details = {name: entry["detail"] for name, entry in written["parts"].items()}
    assert "SIGABRT" in details["aborts"] and "limit of 2 s" in details["hangs"]
    assert "out of memory, say" in details["raises"] and details["skips"] == "needs what is not here"
    missed = {proof["proof"] for proof in written["proofs"] if not proof["met"]}
    assert missed == {"aborts ran", "hangs ran", "raises ran", "torn ran"}
    assert written["parts"]["hangs"]["seconds"] < 10


def test_going_on_runs_what_has_not_ended(faulty, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(faulty.read_text())
    parser = gpu_suite._parser()

    def wanted(*words):
        suite = gpu_suite.Suite.begin(path, True, True)
        suite.module = "faulty_parts"
        args = parser.parse_args(["--json", str(path), "--continue", *words])
        return [part.name for part in gpu_suite._wanted(args, suite)]

    assert wanted() == ["hangs"]  # which was killed; the others ended, rightly or not
    assert wanted("--again") == ["aborts", "hangs", "raises", "torn"]
    suite = gpu_suite.Suite.begin(path, True, True)
    suite.module = "faulty_parts"
    gpu_suite.run_suite(suite, [part for part in faulty_parts.PARTS if part.name in ("good", "raises")], 5)
    again = json.loads(path.read_text())
    assert len(again["rows"]) == 6 and len(again["proofs"]) == len(json.loads(faulty.read_text())["proofs"])


def test_no_time_left_is_said_and_can_be_taken_up(tmp_path):
    suite = gpu_suite.Suite.begin(tmp_path / "x.json", True, False)
    suite.module = "faulty_parts"
    gpu_suite.run_suite(suite, faulty_parts.PARTS, -1)
    assert {entry["status"] for entry in suite.result["parts"].values()} == {"not run"}
    assert not any(suite.ended(part.name) for part in faulty_parts.PARTS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--json", "x.json"], "no CUDA device"),
        ([], "--json"),
        (["--dry", "--json", "x.json", "--only", "nothing"], "no such part"),
        (["--dry", "--json", "nowhere/x.json"], "nowhere"),
    ],
)
def test_bad_input(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert gpu_suite.main(words) == 2
    assert said in capsys.readouterr().err


def test_another_file_is_not_continued(tmp_path, capsys):
    (tmp_path / "x.json").write_text('{"rows": []}')
    assert gpu_suite.main(["--dry", "--json", str(tmp_path / "x.json"), "--continue"]) == 2
    assert "no file of the GPU suite" in capsys.readouterr().err


def test_the_first_pass_is_worth_most_and_fits():
    names = [part.name for part in PARTS]
    assert len(set(names)) == len(names)
    kernels = [f"kernel {operator.name}" for operator in OPERATORS]
    assert names[: len(kernels) + 2] == [*kernels, "training", "step base"]
    assert {"graphs", "fp8", "sanitizer", "determinism", "profile", "step large"} <= set(names)


def test_every_operator_has_cases_and_a_fault_is_seen(monkeypatch):
    assert all(len(gpu_cases.cases_of(operator.name)) >= 1 for operator in OPERATORS)
    case = next(case for case in gpu_cases.cases_of("bias_gelu") if case.dtype == torch.float32)
    assert gpu_cases.worst_error(case, torch.device("cpu"))[1] <= 1
    right = gpu_cases._function
    monkeypatch.setattr(
        gpu_cases, "_function",
        lambda name, reference: right(name, True) if reference else lambda x, bias: right(name, False)(x, bias * 1.001),
    )  # fmt: skip
    assert gpu_cases.worst_error(case, torch.device("cpu"))[1] > 1


@pytest.mark.slow
def test_the_whole_suite_runs_on_a_cpu(tmp_path):
    path, start = tmp_path / "dry.json", time.monotonic()
    command = [sys.executable, "-m", "benchmarks.gpu.gpu_suite", "--dry", "--json", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=400)
    written = json.loads(path.read_text())
    statuses = {name: entry["status"] for name, entry in written["parts"].items()}
    skipped = {name for name, status in statuses.items() if status == "skipped"}
    assert skipped == {"graphs", "fp8", "sanitizer"}, written["parts"]
    assert {status for name, status in statuses.items() if name not in skipped} == {"done"}, written["parts"]
    assert [proof for proof in written["proofs"] if not proof["met"]] == [] and done.returncode == 0
    with_rows = {row["part"] for row in written["rows"]} | {proof["part"] for proof in written["proofs"]}
    assert with_rows == set(statuses) - skipped
    assert (tmp_path / "dry.json.d" / "profile" / "profile.html").exists()
    assert time.monotonic() - start < 360  # 3 minutes are meant, and 131 s measured on two quiet cores
