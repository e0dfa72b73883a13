"""Every .cu file executed on a CPU by tests/cuda_on_cpu: its indexing, shared memory, barriers and shuffles against the
CPU's operators, which other tests hold to float64; and the harness itself, against sources broken on purpose.

Shapes: M rows, D patch feature, V vocabulary, T tasks, R rows to gather from.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cuda_on_cpu
import pytest
import torch
from row_cases import NARROW, Picker

import fashionbert_fast.kernels  # noqa: F401 - registers the CPU's operators

ROOT = Path(__file__).parents[2]
SANITIZER = os.environ.get("CUDA_ON_CPU_SANITIZER")
WIDTHS = (1, 7, 8, 33, 1000, 1024, 2048)  # less than a warp, a warp and some, around a block's packs of 8
pytestmark = pytest.mark.skipif(cuda_on_cpu.COMPILER is None, reason="compiling .cu files for a CPU needs g++")


@pytest.fixture(scope="module")
def cuda():
    torch.ops.load_library(str(cuda_on_cpu.library(SANITIZER)))
    return torch.ops.fashionbert_fast_cuda_on_cpu


@pytest.fixture(scope="module")
def cpu():
    return torch.ops.fashionbert_fast


def _close(mine, theirs) -> None:
    """Equal but for the order of sums: each in units of its largest number."""
    for a, b in zip(mine, theirs, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        bound = 8 * max(torch.finfo(a.dtype).eps, torch.finfo(torch.float32).eps)
        error = (a.double() - b.double()).abs()
        assert not error.numel() or error.max() <= bound * b.double().abs().max().clamp_min(1e-6), error.max()


def _kld_case(seed: int):
    pick = Picker(seed)
    M, D, R = pick((1, 2, 5)), pick(WIDTHS), pick((1, 9))
    gathered = pick((True, False))
    rows_M = torch.randint(R, (M,), generator=pick.generator) if gathered else None
    scale = pick((1e-3, 1.0, 30.0, 1e3))
    return pick.matrix(M, D, pick(NARROW), scale), pick.matrix(R if gathered else M, D, pick(NARROW)), rows_M


@pytest.mark.parametrize("seed", range(12))
def test_patch_kld(cuda, cpu, seed):
    logits_MD, target_RD, rows_M = _kld_case(seed)
    mine, theirs = (op.patch_kld(logits_MD, target_RD, rows_M) for op in (cuda, cpu))
    _close(mine[:1], theirs[:1])
    grad = torch.tensor(3.0)
    _close(
        [cuda.patch_kld_backward(grad, logits_MD, target_RD, rows_M, mine[1])],
        [cpu.patch_kld_backward(grad, logits_MD, target_RD, rows_M, theirs[1])],
    )


def test_no_rows_and_no_columns(cuda):
    for shape in ((0, 5), (3, 0)):
        logits, target = torch.randn(shape), torch.randn(shape)
        loss, rows = cuda.patch_kld(logits, target, None)
        assert shape[0] or loss == 0
        assert cuda.patch_kld_backward(torch.tensor(1.0), logits, target, None, rows).shape == shape
        assert cuda.patch_kld_residual_(logits, target, None).shape == shape[:1]


@pytest.mark.parametrize("row", [-1, 2, 2**40])
def test_a_target_row_that_is_not_there_is_not_read(cuda, row):
    logits_MD, target_RD, rows_M = torch.randn(2, 40), torch.randn(2, 40), torch.tensor([0, row])
    loss, saved = cuda.patch_kld(logits_MD, target_RD, rows_M)
    gradient = cuda.patch_kld_backward(torch.tensor(1.0), logits_MD, target_RD, rows_M, saved)
    assert loss.isnan() and gradient[0].isfinite().all() and gradient[1].isnan().all()
    assert cuda.patch_kld_residual_(logits_MD, target_RD, rows_M).isnan().tolist() == [False, True]


@pytest.mark.parametrize("seed", range(12))
def test_patch_kld_residual(cuda, cpu, seed):
    logits_MD, target_RD, rows_M = _kld_case(seed)
    wide = torch.randn(logits_MD.shape[0], logits_MD.shape[1] + 8).to(logits_MD.dtype)
    if rows_M is not None:
        rows_M[0] = -100
    found = []
    for op in (cuda, cpu):
        view = wide.clone()[:, : logits_MD.shape[1]]  # rows further apart than they are long
        view.copy_(logits_MD)
        found.append((op.patch_kld_residual_(view, target_RD, rows_M), view))
    _close(*found)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("V", [1, 33, 512, 2047, 2048, 4100])
def test_cross_entropy_residual(cuda, cpu, dtype, V):
    pick = Picker(V)
    logits_MV = (torch.randn(3, V, generator=pick.generator) * 5).to(dtype)
    labels_M = torch.tensor([0, -100, V - 1])
    for bias_V in (None, torch.randn(V, generator=pick.generator).to(dtype)):
        found = []
        for op in (cuda, cpu):
            view = torch.zeros(3, V + 5, dtype=dtype)[:, :V]
            view.copy_(logits_MV)
            found.append((op.cross_entropy_residual_(view, bias_V, labels_M), view))
        _close(*found)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("size", [0, 1, 7, 37, 2048, 5001])
@pytest.mark.parametrize("offset", [0, 1])  # 1: off any 16-byte boundary
@pytest.mark.parametrize("T", [3, 4])
def test_task_gradients(cuda, cpu, dtype, size, offset, T):
    generator = torch.Generator().manual_seed(size)
    gradients = [torch.randn(size + offset, generator=generator).to(dtype)[offset:] for _ in range(T)]
    weights_T = torch.tensor([0.2, 0.5, 0.3, -0.7][:T])
    _close([cuda.task_gram(*gradients)], [cpu.task_gram(*gradients)])
    mixed = (*gradients[:3], weights_T, *gradients[3:])
    _close([cuda.task_mix(*mixed)], [cpu.task_mix(*mixed)])


@pytest.mark.parametrize("T", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("detach", [True, False])
def test_adaptive_loss(cuda, cpu, T, detach):
    losses_T = torch.rand(2 * T, generator=torch.Generator().manual_seed(T))[::2] + 0.1
    mine, theirs = (op.adaptive_loss(losses_T, 1.5, detach) for op in (cuda, cpu))
    _close(mine, theirs)
    for grads in ((torch.tensor(2.0), None), (None, torch.randn(T)), (torch.tensor(2.0), torch.randn(2 * T)[::2])):
        _close(*([op.adaptive_loss_backward(*grads, losses_T, 1.5, detach)] for op in (cuda, cpu)))


@pytest.mark.parametrize("T", [1, 2, 3, 4])
def test_min_norm_weights(cuda, cpu, T):
    for seed in range(8):
        rows = torch.randn(T, 5, generator=torch.Generator().manual_seed(seed))
        gram_TT = (rows @ rows.T).T if seed % 2 else rows @ rows.T
        _close([cuda.min_norm_weights(gram_TT)], [cpu.min_norm_weights(gram_TT)])


# The harness: what it is there to catch, broken on purpose
def _run(program: str, library: Path, sanitizer: str | None = None) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, str(library)]
    if sanitizer is not None:
        environment |= {
            "LD_PRELOAD": cuda_on_cpu.runtime(sanitizer), "ASAN_OPTIONS": "detect_leaks=0",
            "TSAN_OPTIONS": "ignore_noninstrumented_modules=1 exitcode=66",
        }  # fmt: skip
        command = ["setarch", "-R", *command]  # the thread sanitizer wants memory where it expects it
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


LOAD = """
import sys, torch
torch.ops.load_library(sys.argv[1])
op = torch.ops.fashionbert_fast_cuda_on_cpu
"""
CROSS_ENTROPY = LOAD + "op.cross_entropy_residual_(torch.randn(2, 3000), None, torch.tensor([5, 7]))"
BEYOND = LOAD + "op.patch_kld(torch.randn(2, 64), torch.randn(1, 64), torch.tensor([0, 1]))"


def test_a_dropped_barrier_is_found():
    name, change = "linear_cross_entropy.cu", ("  __syncthreads();\n  part = SoftmaxPart", "  part = SoftmaxPart")
    done = _run(CROSS_ENTROPY, cuda_on_cpu.library("thread", name), "thread")
    assert done.returncode == 0, done.stderr[-2000:]
    done = _run(CROSS_ENTROPY, cuda_on_cpu.library("thread", name, change), "thread")
    assert done.returncode == 66 and "data race" in done.stderr, done.stderr[-2000:]


def test_an_index_out_of_range_is_found():
    """The kernel looks whether a target row is there; without that it reads what is not its own."""
    name, change = "patch_kld.cu", ("targets_of(rows, m, target_count)", "targets_of(rows, m, int64_t(1) << 40)")
    done = _run(BEYOND, cuda_on_cpu.library("address", name), "address")
    assert done.returncode == 0, done.stderr[-2000:]
    done = _run(BEYOND, cuda_on_cpu.library("address", name, change), "address")
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr, done.stderr[-2000:]


def test_a_wrong_stride_is_found():
    name, change = "linear_patch_kld.cu", ("rows.logits + m * rows.logits_stride", "rows.logits + m * rows.width")
    program = (
        LOAD
        + """
import fashionbert_fast.kernels
logits, target = torch.randn(3, 20)[:, :16], torch.randn(3, 16)
theirs = torch.ops.fashionbert_fast.patch_kld_residual_(logits.clone(), target, None)
wide = torch.zeros(3, 20)[:, :16].copy_(logits)
print(torch.allclose(op.patch_kld_residual_(wide, target, None), theirs, rtol=1e-4))
"""
    )
    assert _run(program, cuda_on_cpu.library(None, name)).stdout.strip() == "True"
    assert _run(program, cuda_on_cpu.library(None, name, change)).stdout.strip() == "False"


@pytest.mark.slow
@pytest.mark.skipif(SANITIZER is not None, reason="this is what a sanitizer runs")
@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_nothing_is_found_in_the_kernels(sanitizer, monkeypatch):
    monkeypatch.setenv("CUDA_ON_CPU_SANITIZER", sanitizer)
    library = cuda_on_cpu.library(sanitizer)  # built before the sanitizer watches the compiler as well
    program = f"import pytest, sys; sys.exit(pytest.main(['-q', '-x', {str(Path(__file__))!r}, '-k', 'not found']))"
    done = _run(program, library, sanitizer)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
