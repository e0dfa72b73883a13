"""The examples run, at sizes of seconds, and do what they say."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
import torch
from training import own_traces

matplotlib.use("Agg")

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name: str) -> dict:
    """What the example defines."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name=name)


def test_own_catalogue(shop, tmp_path, capsys):
    settings = ["model.core=null", "model.hidden_size=32", "model.heads=2", "model.layers=2", "train.steps=4",
                "train.micro_batch_size=4", "train.precision=fp32", "validation.every=0", "validation.keep_best=null",
                "model.intermediate_size=64", "contrastive.first_steps=2", "contrastive.batch_size=4"]  # fmt: skip
    words = [str(shop / "shop.csv"), "--image-column", "photo", "--out", str(tmp_path), "--encoder", "random:0:16",
             "--grid", "2", *settings]  # fmt: skip
    with own_traces():
        example("own_catalogue")["main"](words)
    shown = capsys.readouterr().out
    assert "12 products prepared, 0 skipped" in shown
    assert len(re.findall(r"^\w+ .*: 0\.\d\d with its own photo, 0\.\d\d with another$", shown, re.MULTILINE)) == 5


def test_own_model_learns(capsys):
    """Guessing the more frequent answer is right for about 55%."""
    assert example("own_model")["main"](["--steps", "150"]) > 0.8
    assert "step 150: loss" in capsys.readouterr().out


def test_new_operator(capsys):
    operator = example("new_operator")
    operator["main"]()
    assert "reference, opcheck, gradcheck and compiler agree" in capsys.readouterr().out
    x_TF = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"x_TF must be floating of shape \(T, F\)"):
        operator["bias_squared_relu"](x_TF[0], x_TF[0])
    with pytest.raises(ValueError, match="bias_F must be"):
        operator["bias_squared_relu"](x_TF, x_TF[0].double())


IN_THE_INTERPRETER = """
import runpy, torch
operator = runpy.run_path("new_operator.py")
for shape in ((5, 7), (300, 8), (0, 3)):
    x, bias = torch.randn(shape), torch.randn(shape[1])
    torch.testing.assert_close(operator["launch"](x, bias), operator["bias_squared_relu_reference"](x, bias))
"""


def test_new_operator_in_tritons_interpreter():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", IN_THE_INTERPRETER], cwd=EXAMPLES, env=environment,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_example_is_tested_and_says_how_it_is_run():
    for path in EXAMPLES.glob("*.py"):
        assert f'example("{path.stem}")' in Path(__file__).read_text(), path
        assert f"python examples/{path.name}" in path.read_text(), path


def test_the_notebook_runs(shop):
    """Its cells, one after another, on a shop in place of the demo."""
    cells = json.loads((EXAMPLES / "titles_and_photos.ipynb").read_text())["cells"]
    scope: dict = {}
    for number, cell in enumerate(cell for cell in cells if cell["cell_type"] == "code"):
        assert cell["outputs"] == [] and cell["execution_count"] is None  # what it shows depends on the run
        exec("".join(cell["source"]), scope)
        if number == 0:  # the paths
            scope |= {"RUN": shop / "runs" / "shop", "STORE": shop / "stores" / "shop"}
    plt = scope["plt"]
    count = len(scope["titles"])
    assert scope["score_TP"].shape == (count, count) and count > 1
    assert len(scope["figure"].axes) == 4 * count
    plt.close("all")
