"""Breaks of the native operators: csrc/common and csrc/cpu, which the library's CPU half is built from."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

ADAPTIVE = ("tests/kernels/test_adaptive_loss.py",)
ATTENTION = ("tests/kernels/test_packed_attention.py",)
CLOSING = ("tests/kernels/test_dropout_add_layer_norm.py",)
CROSS_ENTROPY = ("tests/kernels/test_linear_cross_entropy.py",)
EMBED = ("tests/kernels/test_masked_patch_embed.py",)
GELU = ("tests/kernels/test_bias_gelu.py",)
KLD = ("tests/kernels/test_patch_kld.py", "tests/kernels/test_linear_patch_kld.py")
LINEAR_KLD = ("tests/kernels/test_linear_patch_kld.py",)
MIN_NORM = ("tests/kernels/test_min_norm_weights.py",)
TASKS = ("tests/kernels/test_task_gradients.py",)

MUTANTS = (
    Mutant(
        "fork-writes-over-a-gradient-that-someone-holds",
        "csrc/autograd/linear_fork.cpp",
        "return held_once && !at::GradMode::is_enabled()",
        "return !at::GradMode::is_enabled()",
        ("tests/kernels/test_linear_fork.py",),
    ),
    Mutant(
        "fork-forgets-the-residual",
        "csrc/autograd/linear_fork.cpp",
        "grad_x = of_residual + of_product.mm(weight);",
        "grad_x = of_product.mm(weight);",
        ("tests/kernels/test_linear_fork.py",),
    ),
    Mutant(
        "adaptive-weights-of-g-not-squared",
        "csrc/common/adaptive_loss.h",
        "alpha * Real(tasks) - a.g[i] * a.g[i]",
        "alpha * Real(tasks) - a.g[i]",
        ADAPTIVE,
    ),
    Mutant(
        "adaptive-gradient-without-the-softmax-inner-product",
        "csrc/common/adaptive_loss.h",
        "a.g[k] * (dg[k] - inner)",
        "a.g[k] * dg[k]",
        ADAPTIVE,
    ),
    Mutant(
        "adaptive-detach-is-forgotten-by-autograd",
        "csrc/autograd/adaptive_loss.cpp",
        'ctx->saved_data["detach_weights"] = detach_weights;',
        'ctx->saved_data["detach_weights"] = false;',
        ("tests/objectives/test_weighting.py", *ADAPTIVE),
    ),
    Mutant(
        "min-norm-without-the-triangle",
        "csrc/common/min_norm_weights.h",
        "    offer_triangle(m);\n",
        "",
        MIN_NORM,
    ),
    Mutant(
        "min-norm-without-the-tetrahedron",
        "csrc/common/min_norm_weights.h",
        "if (inside) keep_smaller(G, w, best, least);",
        "if (inside && least < 0) keep_smaller(G, w, best, least);",
        MIN_NORM,
    ),
    Mutant(
        "min-norm-of-four-forgets-a-triangle",
        "csrc/common/min_norm_weights.h",
        "vertex < 4; ++vertex",
        "vertex < 3; ++vertex",
        MIN_NORM,
    ),
    Mutant(
        "task-mix-leaves-the-fourth-out",
        "csrc/common/task_gradients.h",
        "int i = 1; i < kTasks;",
        "int i = 1; i < 3;",
        TASKS,
    ),
    Mutant(
        "min-norm-edge-share-of-the-other-task",
        "csrc/common/min_norm_weights.h",
        "(m.G[j][j] - m.G[i][j]) / curvature",
        "(m.G[i][i] - m.G[i][j]) / curvature",
        MIN_NORM,
    ),
    Mutant(
        "task-gram-drops-what-is-less-than-a-vector",
        "csrc/cpu/task_gradients.cpp",
        "  for (; i < end; ++i) total.add(",
        "  for (; i < end - 1; ++i) total.add(",
        TASKS,
    ),
    Mutant(
        "task-gram-two-products-change-places",
        "csrc/common/task_gradients.h",
        "column -= kTasks - ++row;",
        "column -= kTasks - row++;",
        TASKS,
    ),
    Mutant(
        "gelu-polynomial-rounded",
        "csrc/common/gelu.h",
        "1.6132110944e-1f",
        "1.613e-1f",
        GELU,
    ),
    Mutant(
        "gelu-derivative-adds-the-density",
        "csrc/common/gelu.h",
        "normal.tail - normal.t * normal.density",
        "normal.tail + normal.t * normal.density",
        GELU,
    ),
    Mutant(
        "bias-gelu-backward-forgets-the-bias",
        "csrc/cpu/bias_gelu.cpp",
        "gelu_derivative(wide(x[i]) + bias[i])",
        "gelu_derivative(wide(x[i]))",
        GELU,
    ),
    Mutant(
        "column-sums-skip-the-last-row-of-a-block",
        "csrc/cpu/rows.h",
        "std::min(rows, (block + 1) * kSumRows)",
        "std::min(rows, (block + 1) * kSumRows - 1)",
        (*GELU, *CLOSING),
    ),
    Mutant(
        "bfloat16-is-cut-off-instead-of-rounded",
        "csrc/cpu/convert.h",
        "(bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16",
        "bits >> 16",
        (*KLD, *EMBED),
    ),
    Mutant(
        "dropout-with-six-rounds",
        "csrc/common/dropout.h",
        "kPhiloxRounds = 7",
        "kPhiloxRounds = 6",
        CLOSING,
    ),
    Mutant(
        "dropout-does-not-rescale-what-it-keeps",
        "csrc/common/dropout.h",
        "65536.0f / static_cast<float>(65536 - dropout.threshold)",
        "1.0f",
        CLOSING,
    ),
    Mutant(
        "layer-norm-with-the-sample-variance",
        "csrc/cpu/dropout_add_layer_norm.cpp",
        "squares / static_cast<Real>(count) - shift * shift",
        "squares / static_cast<Real>(count - 1) - shift * shift",
        CLOSING,
    ),
    Mutant(
        "gradient-of-x-without-its-holes",
        "csrc/cpu/dropout_add_layer_norm.cpp",
        "put(of_x, to_x + i);",
        "put(gradient, to_x + i);",
        CLOSING,
    ),
    Mutant(
        "bias-gradient-without-dropout",
        "csrc/cpu/dropout_add_layer_norm.cpp",
        "    sums[i] += of_x;",
        "    sums[i] += gradient;",
        CLOSING,
    ),
    Mutant(
        "cross-entropy-forgets-the-bias",
        "csrc/cpu/linear_cross_entropy.cpp",
        "buffer[i] = logits[i] + bias[i];",
        "buffer[i] = logits[i];",
        CROSS_ENTROPY,
    ),
    Mutant(
        "cross-entropy-label-at-the-end-of-a-chunk",
        "csrc/cpu/linear_cross_entropy.cpp",
        "if (label >= first && label < first + count) gradient",
        "if (label >= first && label < first + count - 1) gradient",
        CROSS_ENTROPY,
    ),
    Mutant(
        "ignored-rows-keep-their-logits-as-gradient",
        "csrc/cpu/linear_patch_kld.cpp",
        "          std::fill_n(row, rows.width, Logit(0));\n",
        "",
        LINEAR_KLD,
    ),
    Mutant(
        "kld-chunks-meet-without-a-common-maximum",
        "csrc/cpu/linear_patch_kld.cpp",
        "row.scale_q * exp_nonpositive(scratch.max_q[chunk] - row.max_q)",
        "row.scale_q",
        LINEAR_KLD,
    ),
    Mutant(
        "kld-the-other-way-round",
        "csrc/common/patch_kld.h",
        "sum_d += p * (t - z);",
        "sum_d += q * (z - t);",
        KLD,
    ),
    Mutant(
        "kld-gradient-not-divided-by-the-rows",
        "csrc/cpu/patch_kld.cpp",
        "static_cast<Real>(std::max<int64_t>(rows.count, 1))",
        "Real(1)",
        KLD,
    ),
    Mutant(
        "patch-dropouts-share-a-site",
        "csrc/cpu/masked_patch_embed.cpp",
        "make_dropout(key, static_cast<uint32_t>(site + 1), hidden_dropout)",
        "make_dropout(key, static_cast<uint32_t>(site), hidden_dropout)",
        EMBED,
    ),
    Mutant(
        "weight-gradient-misses-the-last-row",
        "csrc/cpu/masked_patch_embed.cpp",
        "gather(in, 0, in.kept(), rows, first, columns, scratch.get());",
        "gather(in, 0, in.kept() - 1, rows, first, columns, scratch.get());",
        EMBED,
    ),
    Mutant(
        "scale-of-the-pair-instead-of-its-image",
        "csrc/cpu/feature_rows.h",
        "scale[image(row) * patches + row % patches]",
        "scale[row]",
        EMBED,
    ),
    Mutant(
        "attention-looks-at-one-key-less",
        "csrc/cpu/packed_attention.cpp",
        "first_lanes<Real>(load_vector(scores + last), length - last,",
        "first_lanes<Real>(load_vector(scores + last), length - last - 1,",
        ATTENTION,
    ),
    Mutant(
        "attention-query-gradient-not-scaled",
        "csrc/cpu/packed_attention.cpp",
        "store_row(scratch.grad_query + r * width, problem.scale(), problem.width,",
        "store_row(scratch.grad_query + r * width, typename Ops::Real(1), problem.width,",
        ATTENTION,
    ),
    Mutant(
        "attention-every-head-drops-alike",
        "csrc/cpu/packed_attention.cpp",
        "dropout_factors(dropout, static_cast<uint32_t>(head),",
        "dropout_factors(dropout, 0u,",
        ATTENTION,
    ),
)
