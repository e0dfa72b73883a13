"""The list of a layer's kernels is what the launchers do, to the byte; and it is near the floor."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from benchmarks.models import layer_bytes
from benchmarks.models.layer_bytes import SHIPPED, Kernel, Layer, kernels, rows

# Rows that no sequence has, and more than a tile of the sums takes; float32.
LAYERS = (
    Layer(T=80, U=76, S=2, H=64, F=128, N=4),
    Layer(T=48, U=48, S=3, H=32, F=64, N=2, item=4),
)
CHECK = """
import sys
from benchmarks.models import layer_bytes
from fashionbert_fast.kernels.triton import dropout_add_layer_norm
from tests.benchmarks.test_layer_bytes import LAYERS
if sys.argv[1:] == ["autograd sums"]:
    import torch.nn.functional as F
    from fashionbert_fast.model import encoder
    encoder.linear_fork = lambda x_TK, weight_NK: (F.linear(x_TK, weight_NK), x_TK)
    LAYERS = LAYERS[1:]
dropout_add_layer_norm.PROGRAMS = 8  # so that one takes rows more than once, as one of 22,784 rows' does
for layer in LAYERS:
    listed = [(kernel.read, kernel.written) for kernel in layer_bytes.kernels(layer)]
    found = layer_bytes.executed(layer)
    assert [one[1:] for one in found] == listed, (layer, found, listed)
"""


def _check(*words: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-c", CHECK, *words], capture_output=True, text=True, env=environment)


def test_the_list_is_what_the_launchers_do():
    result = _check()
    assert result.returncode == 0, result.stderr[-3000:]


def test_a_pass_that_is_not_listed_is_noticed():
    assert "'add'" in _check("autograd sums").stderr


def test_the_layer_is_near_the_floor():
    assert [1 / row.ratio for row in rows(SHIPPED)] == pytest.approx([1.001, 1.013, 1.009], abs=2e-3)
    assert all(row.met for row in rows(SHIPPED))


def test_the_floor_worked_out_by_hand():
    """In tensors of (T, H), where weights and vectors are small beside them: 34 forward; backward 63."""
    layer = Layer(T=10**7, U=10**7, S=10**5, H=64, F=256, N=1)
    tensor = layer.T * layer.H * layer.item
    floor = {way: sum(k.floor for k in kernels(layer) if k.backward == way) / tensor for way in (False, True)}
    assert floor == {False: pytest.approx(34, rel=1e-3), True: pytest.approx(63, rel=1e-3)}


def test_an_unneeded_pass_costs_the_aim(monkeypatch):
    pass_over_all = Kernel("zeros", True, 0, 40 * SHIPPED.T * SHIPPED.H * SHIPPED.item, 0)
    listed = kernels(SHIPPED)
    monkeypatch.setattr(layer_bytes, "kernels", lambda _: [*listed, pass_over_all])
    assert [row.met for row in rows(SHIPPED)] == [True, False, False]


def test_command(tmp_path, capsys):
    file = tmp_path / "bytes.json"
    assert layer_bytes.main(["--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert len(result["rows"]) == 3
    assert len(result["kernels"]) == 24
    assert "1.009 of the floor" in capsys.readouterr().out
    assert layer_bytes.main(["--pairs", "0"]) == 2
    assert "--pairs 0" in capsys.readouterr().err
