// Every operator's schema: the table of contents of csrc/. Implementations register per device in cpu/ and cuda/.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fashionbert_fast, m) {
  // The smallest point of the convex hull of at most 3 task gradients: csrc/common/min_norm_weights.h.
  m.def("min_norm_weights(Tensor gram) -> Tensor");

  // The gate's two passes over the three task gradients: csrc/common/task_gradients.h.
  m.def("task_gram(Tensor a, Tensor b, Tensor c) -> Tensor");
  m.def("task_mix(Tensor a, Tensor b, Tensor c, Tensor weights) -> Tensor");

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
}
