"""Breaks of the operators' Python: references, Triton kernels, blocks of rows, backwards."""

from __future__ import annotations

from benchmarks.mutants.mutant import Mutant

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
        "        s += tl.load(residual + offsets, mask=inside, other=0.0).to(tl.float32)\n        rstd",
        "        rstd",
        ("tests/kernels/test_dropout_add_layer_norm.py::test_triton_in_the_interpreter",),
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
