"""The model of a cluster sends what a step sends, byte for byte; its formulas hold at both ends; launches are right."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from training import ENVIRONMENT

from benchmarks.models import cluster
from fashionbert_fast.config import Config

ROOT = Path(__file__).parents[2]


def test_a_step_sends_what_the_model_says(store_path, tmp_path):
    out, worker = tmp_path / "sent.json", Path(__file__).parent / "cluster_worker.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(worker),
               str(store_path), str(tmp_path), str(out)]  # fmt: skip
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text())
    assert len(found) == 12
    for one in found:
        model = cluster.sent(one["stage"], one["groups"], one["itemsize"], one["micro_batches"])
        assert sorted(map(tuple, one["sent"])) == sorted(model), one


def test_a_ring_at_both_ends():
    link = cluster.Link(1e-6, 1e9)
    assert cluster.ring("all_reduce", 1e9, 1, link) == 0
    assert cluster.ring("all_reduce", 1e9, 2, link) == pytest.approx(1.0, rel=1e-5)
    assert cluster.ring("all_reduce", 1e9, 1000, cluster.Link(0, 1e9)) == pytest.approx(1.998)
    assert cluster.ring("all_gather", 0, 9, link) == pytest.approx(8e-6)
    one_node = cluster.collective_seconds("all_reduce", 1e8, 8, cluster.DGX_H100)
    assert one_node < cluster.collective_seconds("all_reduce", 1e8, 16, cluster.DGX_H100)


def test_fitting_finds_what_made_the_times():
    link = cluster.Link(2e-5, 3e8)
    times = {size: cluster.ring("reduce_scatter", size, 3, link) for size in cluster.FIT}
    found = cluster.fit("reduce_scatter", times, 3)
    assert found.alpha == pytest.approx(link.alpha) and found.beta == pytest.approx(link.beta)


def test_feeding_bounds_a_step_and_one_gpu_sends_nothing():
    load = cluster.Load([10**6], 2, 1, compute=0.01, feed=0.1, workers=2)
    assert cluster.step_seconds(load, 1, 1, cluster.DGX_H100) == 0.05
    assert cluster.step_seconds(load, 1, 8, cluster.DGX_H100) > 0.05


def test_accumulating_costs_more_at_zero_2_alone():
    load = cluster.Load([10**8], 2, 8, 0.1, 0.0, 1)
    once = dataclasses.replace(load, micro_batches=1)
    more = [cluster.step_seconds(load, s, 64, cluster.DGX_H100) - cluster.step_seconds(once, s, 64, cluster.DGX_H100)
            for s in cluster.STAGES]  # fmt: skip
    assert (
        more[0] == pytest.approx(more[1]) and more[0] < 2e-3 < 3 * more[0] < more[2]
    )  # losses are summed over ranks each time


def test_the_launches_name_real_settings():
    config, checked = Config(), 0
    for path in (*(ROOT / "examples" / "cluster").iterdir(), ROOT / "docs" / "cluster.md"):
        for section, field in re.findall(r"\b(data|model|train|validation|weighting)\.([a-z_0-9]+)=", path.read_text()):
            assert hasattr(getattr(config, section), field), f"{path.name}: {section}.{field}"
            checked += 1
    assert checked > 5
    for script in (ROOT / "examples" / "cluster").glob("*.sbatch"):
        subprocess.run(["bash", "-n", str(script)], check=True)
