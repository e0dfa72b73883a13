"""Every Triton kernel compiles for the GPUs we ship for, as its launcher calls it at BERT-base's widths. No GPU needed.

The launchers run on CPU tensors under a driver that names a GPU; a launch compiles and stops there. The interpreter,
which proves what the kernels compute, takes what a compiler would refuse: types, shapes of blocks, shared memory.
And a batch of another size compiles nothing anew.
"""

from __future__ import annotations

import importlib
import re
import subprocess
from collections import defaultdict
from dataclasses import dataclass

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from fashionbert_fast.operators import OPERATORS

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
SHARED_MEMORY = {80: 166912, 90: 232448}  # bytes a block can have: A100's, H100's
H, F, HEADS, P, D = 768, 3072, 12, 64, 2048
SEED = torch.tensor([7])


def _module(name: str):
    return importlib.import_module(f"fashionbert_fast.kernels.triton.{name}")


class _Target:
    """What Triton asks a driver for, of a GPU that is not there."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # compiled kernels are kept by device

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture
def compiled(monkeypatch):
    """Calls ``function`` on a GPU of ``capability`` that is not there; returns the kernels it would have launched."""
    run = JITFunction.run

    def only_compile(capability: int, function) -> dict[str, triton.compiler.CompiledKernel]:
        kernels = {}

        def compile_one(kernel, *args, grid, warmup, **keywords):
            kernels[kernel.__name__] = run(kernel, *args, grid=grid, warmup=True, **keywords)

        monkeypatch.setattr(JITFunction, "run", compile_one)
        monkeypatch.setattr(triton.runtime.driver, "_active", _Target(capability))
        function()
        return kernels

    return only_compile


@pytest.fixture
def compilations(monkeypatch):
    """Calls ``function`` as on an H100; returns for what types, divisors and constants it would compile each kernel."""

    def collect(function) -> dict[str, set[str]]:
        found = defaultdict(set)

        def bind(kernel, *args, grid, warmup, **keywords):
            *_, binder = kernel.device_caches[90]
            _, specialization, options = binder(*args, **keywords)
            found[kernel.__name__].add(f"{specialization} {options}")

        monkeypatch.setattr(JITFunction, "run", bind)
        monkeypatch.setattr(triton.runtime.driver, "_active", _Target(90))
        function()
        return found

    return collect


# What each operator launches, forward and backward -------------------------------------------------------------------
@dataclass(frozen=True)
class Batch:
    """What differs from one batch, layer or configuration to the next and is to compile nothing anew."""

    rows: int = 32
    pairs: int = 2
    site: int = 3
    dropout: float = 0.1
    seed: torch.Tensor = SEED


def bias_gelu(dtype, batch=Batch()):
    op, x_TF, bias_F = _module("bias_gelu"), torch.zeros(batch.rows, F, dtype=dtype), torch.zeros(F, dtype=dtype)
    op.launch_forward(x_TF, bias_F)
    op.launch_backward(x_TF, x_TF, bias_F)


def dropout_add_layer_norm(dtype, batch=Batch()):
    op, drop = _module("dropout_add_layer_norm"), (batch.dropout, batch.seed, batch.site)
    x_TH, weight_H = torch.zeros(batch.rows, H, dtype=dtype), torch.zeros(H, dtype=dtype)
    _, stats_T2 = op.launch_forward(x_TH, x_TH, weight_H, weight_H, weight_H, 1e-12, *drop)
    op.launch_backward(x_TH, x_TH, x_TH, weight_H, weight_H, stats_T2, *drop)


def packed_attention(dtype, batch=Batch(), max_seqlen: int = 128):
    op, drop = _module("packed_attention"), (batch.dropout, batch.seed, batch.site)
    qkv_T3H, bias_3H = torch.zeros(batch.rows, 3 * H, dtype=dtype), torch.zeros(3 * H, dtype=dtype)
    cu_seqlens_S1 = torch.tensor([0, batch.rows // 2, batch.rows], dtype=torch.int32)
    rest = (HEADS, max_seqlen, *drop)
    context_TH, lse_NT = op.launch_forward(qkv_T3H, bias_3H, cu_seqlens_S1, *rest)
    op.launch_backward(context_TH, qkv_T3H, bias_3H, cu_seqlens_S1, context_TH, lse_NT, *rest)


def packed_attention_of_long_sequences(dtype, batch=Batch()):
    packed_attention(dtype, batch, max_seqlen=512)


def masked_patch_embed(dtype, batch=Batch(), features_dtype=None, scaled: bool = False):
    op, pairs, p = _module("masked_patch_embed"), batch.pairs, batch.dropout
    features_IPD = torch.zeros(pairs, P, D, dtype=features_dtype or dtype)
    mask_BP, index_B = torch.zeros(pairs, P, dtype=torch.bool), torch.arange(pairs)
    weight_HD, position_PH, vector_H = (torch.zeros(shape, dtype=dtype) for shape in ((H, D), (P, H), (H,)))
    scale_IP = torch.ones(pairs, P) if scaled else None
    text = torch.zeros(8, H, dtype=dtype), torch.arange(8), 8 + P * index_B
    shared = (features_IPD, mask_BP, weight_HD, position_PH, vector_H, vector_H)
    drop = (index_B, scale_IP, p, p, batch.seed, batch.site)
    out, projection_NH, stats_N2 = op.launch_forward(*shared, vector_H, 1e-12, *drop, *text, 8 + pairs * P)
    op.launch_backward(out, *shared, *drop, text[2], projection_NH, stats_N2, features_dtype is None, True)


def masked_patch_embed_of_int8(dtype, batch=Batch()):
    masked_patch_embed(dtype, batch, torch.int8, scaled=True)


def masked_patch_embed_of_float8(dtype, batch=Batch()):
    masked_patch_embed(dtype, batch, torch.float8_e5m2, scaled=True)


CASES = {  # operator -> calls of its launchers, and how many kernels each is to launch
    "bias_gelu": {bias_gelu: 3},
    "dropout_add_layer_norm": {dropout_add_layer_norm: 3},
    "masked_patch_embed": {masked_patch_embed: 7, masked_patch_embed_of_int8: 6, masked_patch_embed_of_float8: 6},
    "packed_attention": {packed_attention: 3, packed_attention_of_long_sequences: 4},
}
LAUNCHED = [
    pytest.param(function, count, id=function.__name__)
    for operator in OPERATORS
    if operator.gpu == "Triton"
    for function, count in CASES[operator.name].items()  # KeyError: a new operator without a case
]
# Bytes known to spill: products of float32, and attention on an A100 of more than 128 tokens.
SPILLED = {
    ("_key_backward_kernel", F32): 640,
    ("_query_backward_kernel", F32): 224,
    ("_weight_gradient", F32): 16,
    ("_key_backward_kernel", BF16): 184,
}
TARGETS = ((90, BF16), (90, F32), (90, F16), (80, BF16))


def _resources(kernel, tmp_path) -> tuple[int, int]:
    """Registers a thread and bytes of its stack, which are what it spills."""
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)]
    usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    return int(registers), int(stack)


@pytest.mark.parametrize(("function", "count"), LAUNCHED)
def test_triton_kernels_compile(function, count, compiled, tmp_path, capsys):
    lines = []
    for capability, dtype in TARGETS:
        kernels = compiled(capability, lambda dtype=dtype: function(dtype))
        assert len(kernels) == count, sorted(kernels)
        for name, kernel in kernels.items():
            registers, stack = _resources(kernel, tmp_path)
            assert stack <= SPILLED.get((name, dtype), 0), f"{name} spills {stack} bytes a thread"
            assert kernel.metadata.shared <= SHARED_MEMORY[capability], name
            what = f"{name:24}{str(dtype).removeprefix('torch.'):9} sm_{capability}"
            shared = f"{kernel.metadata.shared:7} bytes shared"
            lines.append(f"{what} {registers:4} registers {stack:5} bytes spilled {shared}")
    with capsys.disabled():
        print("", *lines, sep="\n")


BATCHES = (
    *(Batch(rows=count, pairs=count) for count in (1, 2, 3, 16)),  # one, even, odd, and what 16 divides
    *(Batch(site=site) for site in (1, 16)),
    Batch(dropout=0.5),  # 32768 of 65536: a threshold that 16 divides
    Batch(seed=torch.tensor([7, 7])[1:]),  # at no multiple of 16 bytes
)


@pytest.mark.parametrize(("function", "count"), LAUNCHED)
def test_another_batch_compiles_nothing_anew(function, count, compilations):
    found = compilations(lambda: [function(BF16, batch) for batch in BATCHES])
    assert {name: len(keys) for name, keys in found.items()} == dict.fromkeys(found, 1), found
    assert len(found) == count


def test_a_stride_that_16_does_not_divide_compiles_another_kernel(compilations):
    """Or the test above would see nothing: such a stride forbids loads of 16 bytes."""
    op, qkv_T3H = _module("packed_attention"), torch.zeros(4, 3 * H + 1, dtype=BF16)
    offsets = torch.tensor([0, 4], dtype=torch.int32)
    inputs = (qkv_T3H[:, :-1], qkv_T3H[:, :-1].contiguous())
    found = compilations(lambda: [op.launch_forward(x, None, offsets, HEADS, 4, 0.0, None, 0) for x in inputs])
    assert len(found["_forward_kernel"]) == 2
