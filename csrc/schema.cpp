// Every operator's schema: the table of contents of csrc/. Implementations register per device in cpu/ and cuda/.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fashionbert_fast, m) {
  // Closed-form adaptive weights over T task losses: csrc/common/adaptive_loss.h has the formula.
  m.def("adaptive_loss(Tensor losses, float alpha, bool detach_weights) -> (Tensor loss, Tensor weights)");
  m.def(
      "adaptive_loss_backward(Tensor grad_loss, Tensor grad_weights, Tensor losses, float alpha, bool detach_weights) "
      "-> Tensor");
}
