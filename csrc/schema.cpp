// Every operator's schema: the table of contents of csrc/. Implementations register per device in cpu/ and cuda/.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fashionbert_fast, m) {
  // The smallest point of the convex hull of at most 4 task gradients: csrc/common/min_norm_weights.h.
  m.def("min_norm_weights(Tensor gram) -> Tensor");

  // The gate's two passes over three task gradients, or four: csrc/common/task_gradients.h.
  m.def("task_gram(Tensor a, Tensor b, Tensor c, Tensor? d=None) -> Tensor");
  m.def("task_mix(Tensor a, Tensor b, Tensor c, Tensor weights, Tensor? d=None) -> Tensor");

  // Closed-form adaptive weights over T task losses: csrc/common/adaptive_loss.h has the formula.
  m.def("adaptive_loss(Tensor losses, float alpha, bool detach_weights) -> (Tensor loss, Tensor weights)");
  m.def(
      "adaptive_loss_backward(Tensor? grad_loss, Tensor? grad_weights, Tensor losses, float alpha, "
      "bool detach_weights) -> Tensor");
  // Mean over rows of KL(softmax(target) || softmax(logits)): csrc/common/patch_kld.h has the formula. Row m's target
  // is row target_rows[m] of target, or row m where target_rows is None. rows: (M, 4), what the backward needs of each.
  m.def("patch_kld(Tensor logits, Tensor target, Tensor? target_rows) -> (Tensor loss, Tensor rows)");
  m.def(
      "patch_kld_backward(Tensor grad_loss, Tensor logits, Tensor target, Tensor? target_rows, Tensor rows) -> Tensor");

  // A linear layer and its loss without logits in float32: csrc calls `residual_` the step between the matrix products,
  // which turns a block of logits into the gradient of its row losses in place and returns those losses. Rows whose
  // target row or label is -100 count for nothing. linear_* are composed of it in kernels/linear_*.py.
  m.def("patch_kld_residual_(Tensor(a!) logits, Tensor target, Tensor? target_rows) -> Tensor");
  m.def("cross_entropy_residual_(Tensor(a!) logits, Tensor? bias, Tensor labels) -> Tensor");
  m.def(
      "linear_patch_kld(Tensor hidden, Tensor weight, Tensor target, Tensor? target_rows, bool save) -> (Tensor loss, "
      "Tensor residual)");
  m.def(
      "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor? bias, Tensor labels, bool save) -> (Tensor loss, "
      "Tensor residual)");
  m.def(
      "linear_residual_backward(Tensor grad_loss, Tensor residual, Tensor hidden, Tensor weight, bool bias) -> (Tensor "
      "grad_hidden, Tensor grad_weight, Tensor grad_bias)");
  // LayerNorm(residual + dropout(x + bias)) of each row; dropout is csrc/common/dropout.h's on (site, plane 0, row).
  // stats: (T, 2), mean and 1 / standard deviation of each row. The backward's grad_x is empty where nothing drops,
  // being grad_residual; its grad_bias is empty without a bias.
  m.def(
      "dropout_add_layer_norm(Tensor x, Tensor residual, Tensor? bias, Tensor ln_weight, Tensor ln_bias, float eps, "
      "float dropout, Tensor? seed, int site) -> (Tensor y, Tensor stats)");
  m.def(
      "dropout_add_layer_norm_backward(Tensor grad, Tensor x, Tensor residual, Tensor? bias, Tensor ln_weight, "
      "Tensor stats, float dropout, Tensor? seed, int site) -> (Tensor grad_x, Tensor grad_residual, "
      "Tensor grad_bias, Tensor grad_ln_weight, Tensor grad_ln_bias)");

  // The exact GELU of x + bias: csrc/common/gelu.h has the formula. grad_bias is empty without a bias.
  m.def("bias_gelu(Tensor x, Tensor? bias) -> Tensor");
  m.def("bias_gelu_backward(Tensor grad, Tensor x, Tensor? bias) -> (Tensor grad_x, Tensor grad_bias)");
  // Self-attention inside each of S sequences packed along one axis: fashionbert_fast/kernels/packed_attention.py has
  // the formula. lse: (heads, T), the log-sum-exp of each query's scaled scores, for the backward.
  m.def(
      "packed_attention(Tensor qkv, Tensor? bias, Tensor cu_seqlens, int heads, int max_seqlen, float dropout, Tensor? "
      "seed, "
      "int site) -> (Tensor context, Tensor lse)");
  m.def(
      "packed_attention_backward(Tensor grad_context, Tensor qkv, Tensor? bias, Tensor cu_seqlens, Tensor context, "
      "Tensor lse, int heads, int max_seqlen, float dropout, Tensor? seed, int site) -> (Tensor grad_qkv, Tensor "
      "grad_bias)");
  // LayerNorm(masked(features) @ weight^T + position + segment), dropout on the feature and on the result:
  // kernels/masked_patch_embed.py has the formula. With text, the result is a packed sequence of `packed_rows` rows:
  // text row n at text_row[n], pair b's patches from patch_row[b] on, zeros elsewhere. projection: what the product
  // gave each row; stats: (rows, 2), a row's mean and 1 / standard deviation; both for the backward.
  m.def(
      "masked_patch_embed(Tensor features, Tensor patch_mask, Tensor weight, Tensor position, Tensor segment, "
      "Tensor ln_weight, Tensor ln_bias, float eps, Tensor? image_index, Tensor? scale, float feature_dropout, "
      "float hidden_dropout, Tensor? seed, int site, Tensor? text, Tensor? text_row, Tensor? patch_row, "
      "SymInt packed_rows) -> (Tensor out, Tensor projection, Tensor stats)");
  // Gradients of features, weight, position, segment, ln_weight and ln_bias; the first two empty where not asked for.
  m.def(
      "masked_patch_embed_backward(Tensor grad_out, Tensor features, Tensor patch_mask, Tensor weight, "
      "Tensor position, Tensor segment, Tensor ln_weight, Tensor? image_index, Tensor? scale, float feature_dropout, "
      "float hidden_dropout, Tensor? seed, int site, Tensor? patch_row, Tensor projection, Tensor stats, "
      "bool features_gradient, bool weight_gradient) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}
