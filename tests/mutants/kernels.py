"""Breaks of the operators' Python: references, Triton kernels, blocks of rows, backwards."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

KERNELS = "fashionbert_fast/kernels/"
CROSS_ENTROPY = ("tests/kernels/test_linear_cross_entropy.py",)
LINEAR_KLD = ("tests/kernels/test_linear_patch_kld.py",)

MUTANTS = (
    Mutant(
        "last-block-of-rows-skipped",
        KERNELS + "_linear_residual.py",
        "for first in range(0, M, block):",
        "for first in range(0, max(M - block, 1), block):",
        (*LINEAR_KLD, *CROSS_ENTROPY),
    ),
    Mutant(
        "bias-gradient-ignores-what-arrives",
        KERNELS + "_linear_residual.py",
        "scaled_(residual_MD.sum(0), grad_loss) if bias",
        "residual_MD.sum(0) if bias",
        CROSS_ENTROPY,
    ),
    Mutant(
        "gradient-not-divided-by-the-rows",
        KERNELS + "linear_patch_kld.py",
        "scale = grad_loss / max(hidden_MH.shape[0], 1)",
        "scale = grad_loss",
        LINEAR_KLD,
    ),
    Mutant(
        "target-gradient-without-its-mean",
        KERNELS + "patch_kld.py",
        "p_MD * (difference_MD - kl_M1)",
        "p_MD * difference_MD",
        ("tests/kernels/test_patch_kld.py",),
    ),
    Mutant(
        "adaptive-reference-without-softmax",
        KERNELS + "adaptive_loss.py",
        "g_T = torch.softmax(signals_T, dim=0)",
        "g_T = signals_T / signals_T.sum()",
        ("tests/kernels/test_adaptive_loss.py",),
    ),
    Mutant(
        "dropout-reference-another-key",
        KERNELS + "dropout.py",
        "(k1 + 0xBB67AE85) & low",
        "(k1 + 0x9E3779B9) & low",
        ("tests/kernels/test_dropout.py",),
    ),
    Mutant(
        "triton-dropout-columns-in-another-order",
        KERNELS + "triton/dropout.py",
        "tl.permute(draws, (0, 1, 4, 5, 3, 2))",
        "tl.permute(draws, (0, 1, 5, 4, 3, 2))",
        ("tests/kernels/test_dropout.py",),
    ),
    Mutant(
        "layer-norm-gradients-change-places",
        KERNELS + "dropout_add_layer_norm.py",
        "return grad_x_TH, grad_residual_TH, grad_bias_H, grad_weight_H, grad_ln_bias_H, None",
        "return grad_x_TH, grad_residual_TH, grad_bias_H, grad_ln_bias_H, grad_weight_H, None",
        ("tests/kernels/test_dropout_add_layer_norm.py",),
    ),
    Mutant(
        "triton-gelu-by-tanh",
        KERNELS + "triton/bias_gelu.py",
        "    tl.store(y + offsets, (u * cdf)",
        "    cdf = tl.sigmoid(1.702 * u)\n    tl.store(y + offsets, (u * cdf)",
        ("tests/kernels/test_bias_gelu.py::test_triton_in_the_interpreter",),
    ),
    Mutant(
        "triton-closing-forgets-the-residual",
        KERNELS + "triton/dropout_add_layer_norm.py",
        "        s += tl.load(residual + offsets, mask=mask, other=0.0).to(tl.float32)\n        mean",
        "        mean",
        ("tests/kernels/test_dropout_add_layer_norm.py::test_triton_in_the_interpreter",),
    ),
    Mutant(
        "triton-sums-lack-the-last-tile",
        KERNELS + "triton/column_sums.py",
        "for from_row in range(0, height, ROWS):",
        "for from_row in range(0, height - ROWS, ROWS):",
        ("tests/kernels/test_bias_gelu.py::test_triton_in_the_interpreter",),
    ),
    Mutant(
        "triton-attention-leaves-rows-unwritten",
        KERNELS + "triton/packed_attention.py",
        "                _zero_rows(grad_qkv + part * H + head * E, 3 * H, first, T, columns_E, M, E)",
        "                _zero_rows(grad_qkv + part * H + head * E, 3 * H, first, first, columns_E, M, E)",
        ("tests/benchmarks/test_layer_bytes.py",),
    ),
    Mutant(
        "triton-compiles-anew-for-other-numbers-of-images",
        KERNELS + "triton/masked_patch_embed.py",
        '@triton.jit(do_not_specialize=["images", "P"])\ndef _project(',
        '@triton.jit(do_not_specialize=["P"])\ndef _project(',
        ("tests/test_triton_build.py::test_another_batch_compiles_nothing_anew",),
    ),
    Mutant(
        "triton-float32-products-forget-tf32",
        KERNELS + "triton/masked_patch_embed.py",
        'fp32_precision != "tf32"',
        'fp32_precision != "high"',
        ("tests/kernels/test_masked_patch_embed.py::test_float32_products_are_in_tf32_where_torch_was_told_so",),
    ),
    Mutant(
        "gradient-of-the-text-halved",
        KERNELS + "masked_patch_embed.py",
        "of_text = grad_out.index_select(0, text_row_N) if",
        "of_text = grad_out.index_select(0, text_row_N) / 2 if",
        ("tests/kernels/test_masked_patch_embed.py",),
    ),
    Mutant(
        "strided-task-gradients-taken-as-dense",
        KERNELS + "task_gradients.py",
        "return [gradient.detach().contiguous() for gradient in gradients]",
        "return [gradient.detach() for gradient in gradients]",
        ("tests/kernels/test_task_gradients.py",),
    ),
)
