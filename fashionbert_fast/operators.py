"""The operators, listed once: doctor, the benchmarks, the build tests and docs/operators.md derive from this list.

The operator NAME is kernels/NAME.py, csrc/cpu/NAME.cpp, tests/kernels/test_NAME.py and benchmarks/ops/bench_NAME.py;
its GPU leg is csrc/cuda/NAME.cu, or kernels/triton/NAME.py. `tests/test_operators.py` names what is missing.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Operator:
    """``schemas``: what csrc/schema.cpp defines for it, each with a kernel for the CPU and one for CUDA. ``gpu``: what
    the latter are written in. ``gives``: what it computes, for people. ``composed``: further schemas, put together from
    kernels and library products in Python."""

    name: str
    schemas: tuple[str, ...]
    gpu: str  # CUDA C++ | Triton
    gives: str
    composed: tuple[str, ...] = ()

    @property
    def gpu_file(self) -> str:
        folder, suffix = ("csrc/cuda", "cu") if self.gpu == "CUDA C++" else ("fashionbert_fast/kernels/triton", "py")
        return f"{folder}/{self.name}.{suffix}"


OPERATORS = (
    Operator("adaptive_loss", ("adaptive_loss", "adaptive_loss_backward"), "CUDA C++",
             "weights of the task losses in closed form, and the weighted loss"),
    Operator("bias_gelu", ("bias_gelu", "bias_gelu_backward"), "Triton", "GELU(x + bias)"),
    Operator("dropout_add_layer_norm", ("dropout_add_layer_norm", "dropout_add_layer_norm_backward"), "Triton",
             "LayerNorm(residual + dropout(x + bias))"),
    Operator("linear_cross_entropy", ("cross_entropy_residual_",),
             "CUDA C++", "cross-entropy of a linear layer, without logits in float32",
             composed=("linear_cross_entropy", "linear_residual_backward")),
    Operator("linear_patch_kld", ("patch_kld_residual_",), "CUDA C++",
             "patch_kld of a linear layer, without logits in float32", composed=("linear_patch_kld",)),
    Operator("masked_patch_embed", ("masked_patch_embed", "masked_patch_embed_backward"), "Triton",
             "LayerNorm(masked(features) @ weight.T + position + segment), packed beside the text"),
    Operator("min_norm_weights", ("min_norm_weights",), "CUDA C++",
             "the smallest point of the convex hull of the task gradients"),
    Operator("packed_attention", ("packed_attention", "packed_attention_backward"), "Triton",
             "self-attention within each packed sequence"),
    Operator("patch_kld", ("patch_kld", "patch_kld_backward"), "CUDA C++",
             "mean KL(softmax(target) || softmax(logits)) of rows"),
    Operator("task_gradients", ("task_gram", "task_mix"), "CUDA C++",
             "Gram matrix and weighted sum of three or four task gradients"),
)  # fmt: skip


def table() -> str:
    """The operators as a table in Markdown: what docs/operators.md shows."""
    lines = ["| operator | gives | CPU | GPU |", "| --- | --- | --- | --- |"]
    for o in OPERATORS:
        where, gives = f"[{o.gpu}](../{o.gpu_file})", o.gives.replace("|", "\\|")  # else the end of a cell
        lines.append(
            f"| [`{o.name}`](../fashionbert_fast/kernels/{o.name}.py) | {gives} | "
            f"[C++](../csrc/cpu/{o.name}.cpp) | {where} |"
        )
    return "\n".join(lines)
