"""A step in a process of its own: equal losses from ours, the padded peer and ours under DeepSpeed."""

from __future__ import annotations

import pytest
import torch

from benchmarks.measure import Row
from benchmarks.steps import bench_step, step_process
from benchmarks.steps.bench_step import _Comparison, check_losses, peers
from benchmarks.steps.step_process import Step, StepProcess, _Runner
from benchmarks.steps.workload import fashion_gen_lengths

TINY = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 64, "patches": 4, "patch_feature_size": 24}  # fmt: skip
OURS = Step("ours", TINY, tuple(int(n) for n in fashion_gen_lengths(16)), 8, "cpu")


def test_every_peer_is_a_change_of_ours():
    steps = peers(OURS)
    narrow = {"b-weights", "c-weights", "d-weights", "d-compiled-weights"}
    assert set(steps) == {"a-float32", "a-bf16", "b", "c", "d", "d-compiled", "zero-1", "zero-2"} | narrow
    assert set(steps) == set(bench_step.TARGETS) == set(bench_step.NAMES)
    assert len(set(bench_step.NAMES.values())) == len(steps)
    assert all(step.lengths == OURS.lengths and step.model == TINY for step in steps.values())
    assert steps["a-float32"].pad_to == 64 and steps["a-float32"].dense_heads and steps["c"].compiled
    for key in narrow:
        assert steps[key] == steps[key.removesuffix("-weights")].but(narrow_weights=True)
    assert steps["d"].bucketed and steps["zero-2"].zero_stage == 2 and steps["zero-2"].ours


@pytest.mark.parametrize("peer", ["d", "d-weights", "zero-1"])
def test_losses_agree_and_a_row_comes_out(peer):
    with StepProcess(OURS) as ours:
        comparison = _Comparison("case", ours, 2, torch.device("cpu"))
        row, seconds = comparison.against(peer, peers(OURS)[peer], target=0.0)
        assert row.met and row.unit == "samples/s" and row.value > 0 and seconds > 0
        facts = ours.facts()
        assert facts["samples"] == 16 and facts["useful_flops"] > 0 and facts["gemm_rate"] > 0 and facts["memory"] > 0
        assert facts["tokens"] == sum(OURS.lengths) + 16 * 4


def test_the_aim_beside_a_bucketed_peer_is_higher_where_the_processor_has_amx(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for has, bucketed in (({"avx512_bf16"}, 1.15), ({"amx_bf16"}, 1.7)):
        monkeypatch.setattr(bench_step.cpu, "flags", lambda has=has: frozenset(has))
        assert {bench_step.aim(key, cpu) for key in peers(OURS) if key.startswith("d")} == {bucketed}
        assert bench_step.aim("b-weights", cpu) == 1.5 and bench_step.aim("d-weights", cuda) == 1.3


def test_a_peer_with_narrow_weights_learns_what_float32_masters_do():
    """Its weights are the masters rounded to bfloat16, step after step; its steps would be lost in bfloat16 alone."""
    runner = _Runner(peers(OURS)["d-weights"].but(model=TINY))
    weights, masters = list(runner.model.parameters()), runner.optimizer.masters
    assert {w.dtype for w in weights} == {torch.bfloat16} and {m.dtype for m in masters} == {torch.float32}
    before = [m.clone() for m in masters]
    for _ in range(2):
        runner.seconds()
    assert all(torch.equal(w, m.bfloat16()) for w, m in zip(weights, masters, strict=True))
    assert sum(not torch.equal(m, b) for m, b in zip(masters, before, strict=True)) > len(masters) / 2


@pytest.mark.parametrize(("device", "name", "how"), [("cpu", "float32", []), ("cuda", "float32 (TF32)", ["high"])])
def test_the_float32_peer_multiplies_in_tf32_on_a_gpu_and_says_so(device, name, how, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    for step in peers(OURS.but(device=device)).values():
        step_process.allow_tf32(step)
    assert asked == how
    assert bench_step.peer_name("a-float32", torch.device(device)) == f"(a) released recipe, {name}"


def test_another_step_is_found_out():
    with StepProcess(OURS.but(ours=False)) as theirs:
        losses = theirs.losses()
        check_losses(losses, theirs)
        with pytest.raises(AssertionError, match="not the same step"):
            check_losses([losses[0] * 1.1, *losses[1:]], theirs)


def test_a_process_that_fails_says_why():
    with StepProcess(OURS.but(model=TINY | {"hidden_size": 33})) as broken, pytest.raises(RuntimeError, match="33"):
        broken.losses()


def test_the_ladder_alone(monkeypatch):
    """`bench step --only ladder`: each technique's row, what packing saves, and the summary of ours."""
    monkeypatch.setitem(bench_step.MODELS, "base", TINY)
    monkeypatch.setattr(bench_step, "PAIRS", {"cpu": {"base": 8}})
    monkeypatch.setattr(bench_step, "TECHNIQUES", ("packing", "bias_gelu"))
    rows = list(bench_step.rows(torch.device("cpu"), True, only=("ladder",)))
    peers = [row.peer for row in rows if isinstance(row, Row)]
    assert {"bf16 GEMM rate of this run", "ours without packing", "ours without bias_gelu"} <= set(peers)
    (packing,) = (row for row in rows if row.case.endswith("packing: time saved"))
    assert packing.peer_value > 0 and packing.unit == "s"
