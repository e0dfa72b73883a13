"""The command line: help with examples everywhere, statuses, and the small commands."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from transformers import BertModel

from benchmarks import measure
from benchmarks.ops import (
    bench_bias_gelu,
    bench_linear_cross_entropy,
    bench_linear_patch_kld,
    bench_masked_patch_embed,
    bench_packed_attention,
)
from benchmarks.run import SUITES
from fashionbert_fast import FashionBertConfig, FashionBertForPreTraining, __version__
from fashionbert_fast.cli import COMMANDS, main

# Of the measurements that take longest.
SMALLER = {
    bench_linear_cross_entropy: {"V": 500},
    bench_linear_patch_kld: {"H": 64, "D": 256},
    bench_masked_patch_embed: {"H": 128, "D": 256},
    bench_packed_attention: {"N": 2, "H": 128},
    bench_bias_gelu: {"ROWS": {"cpu": 64}},
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    assert f"fashionbert {command}" in capsys.readouterr().out.split("examples:")[1]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_answers_at_once(command):
    """Importing torch takes two seconds; help and usage errors need none of it, nor anything of its size."""
    program = (
        "import sys, contextlib, io\nfrom fashionbert_fast.cli import main\n"
        f"with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        f"    main({[command, '--help'] if command else ['--help']})\n"
        "slow = ('torch', 'transformers', 'deepspeed', 'matplotlib', 'pyarrow')\n"
        "print([name for name in slow if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["pretrain"], ["evaluate", "--protocol", "none"]])
def test_usage_errors_exit_with_2(argv, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    assert exit_.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert __version__ in capsys.readouterr().out


def test_doctor(tmp_path, capsys):
    assert main(["doctor", "--json", str(tmp_path / "doctor.json")]) == 0
    report = json.loads((tmp_path / "doctor.json").read_text())
    assert report["versions"]["torch"] == torch.__version__
    assert "C++" in report["operators"]["adaptive_loss"]
    assert report["versions"]["fashionbert_fast"] == __version__
    assert report["devices"][0].startswith("cpu: ") and "instructions" in report["devices"][0]
    assert report["build"]["cuda"].startswith(("compiled by nvcc", "skipped"))
    assert "adaptive_loss" in capsys.readouterr().out


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_bench_writes_the_contracts_rows(whole, tmp_path, monkeypatch):
    """Every operator's measurement. Not ``whole``: once each, some of smaller sizes, where the peer torch.compile is
    the plain function; whole steps have tests/benchmarks/test_weighted_step.py."""
    names = list(SUITES["ops"])
    if not whole:
        names.remove("weighted_step")
        monkeypatch.setattr(torch, "compile", lambda function, **_: function)
        monkeypatch.setattr(measure, "_calls_for", lambda *_: 1)
        for module, sizes in SMALLER.items():
            for name, size in sizes.items():
                monkeypatch.setattr(module, name, size)
    assert main(["bench", "ops", "--quick", "--only", *names, "--json", str(tmp_path / "ops.json")]) == 0
    report = json.loads((tmp_path / "ops.json").read_text())
    assert set(report) == {"device", "versions", "commit", "rows"}
    cases = {row["case"].split()[0] for row in report["rows"]}
    assert {*names} - {"weighted_step", "task_gradients"} | {"task_gram", "task_mix"} <= cases
    for row in report["rows"]:
        assert set(row) == {"case", "peer", "value", "peer_value", "unit", "ratio", "target", "met", "spread"}
        assert row["met"] == (row["ratio"] >= row["target"])
        assert row["spread"][0] <= row["ratio"] <= row["spread"][1]


def test_export_gives_a_checkpoint_transformers_loads(tmp_path, capsys):
    config = FashionBertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                               intermediate_size=32, patches=4, patch_feature_size=8)  # fmt: skip
    model = FashionBertForPreTraining(config).eval()
    model.save_pretrained(tmp_path / "model")
    assert main(["export", "--checkpoint", str(tmp_path / "model"), "--out", str(tmp_path / "bert")]) == 0
    theirs = BertModel.from_pretrained(tmp_path / "bert").eval()
    ids_BL = torch.randint(50, (2, 6))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids_BL).last_hidden_state, model.encode_text(ids_BL), atol=1e-5, rtol=0)
    assert main(["export", "--checkpoint", str(tmp_path / "model"), "--out", str(tmp_path / "bert")]) == 2
    assert main(["export", "--checkpoint", str(tmp_path / "nowhere"), "--out", str(tmp_path / "b2")]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in errors if "error:" in line]) == 2


def test_bench_refuses_a_file_it_cannot_write(capsys):
    assert main(["bench", "ops", "--json", "/nowhere/x.json"]) == 2
    assert "/nowhere" in capsys.readouterr().err
