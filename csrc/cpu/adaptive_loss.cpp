// adaptive_loss on CPU: three numbers, one thread; what it saves over plain PyTorch is a dozen operator calls.
#include "common/adaptive_loss.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "common/tensor.h"

namespace fashionbert {
namespace {

template <typename Storage>
void load(const Tensor& tensor, int tasks, compute_t<Storage>* out) {
  const auto* data = static_cast<const Storage*>(tensor.const_data_ptr());
  const int64_t stride = tensor.stride(0);
  for (int i = 0; i < tasks; ++i) out[i] = static_cast<compute_t<Storage>>(data[i * stride]);
}

std::tuple<Tensor, Tensor> forward(Tensor losses, double alpha, bool detach_weights) {
  const int tasks = checked_task_count(losses, kMaxTasks);
  Tensor loss = new_scalar(losses);
  Tensor weights = new_vector(losses, tasks);
  dispatch_floating(losses.scalar_type(), "adaptive_loss", [&]<typename Storage>() {
    using Real = compute_t<Storage>;
    Real values[kMaxTasks], solved[kMaxTasks];
    load<Storage>(losses, tasks, values);
    *static_cast<Storage*>(loss.mutable_data_ptr()) =
        static_cast<Storage>(adaptive_loss_forward<Real>(values, tasks, static_cast<Real>(alpha), solved));
    auto* out = static_cast<Storage*>(weights.mutable_data_ptr());
    for (int i = 0; i < tasks; ++i) out[i] = static_cast<Storage>(solved[i]);
  });
  return {loss, weights};
}

// A gradient that is not there is zero: autograd need not make a tensor of zeros for it.
Tensor backward(std::optional<Tensor> grad_loss, std::optional<Tensor> grad_weights, Tensor losses, double alpha,
                bool detach_weights) {
  const int tasks = checked_task_count(losses, kMaxTasks);
  Tensor grad_losses = new_vector(losses, tasks);
  dispatch_floating(losses.scalar_type(), "adaptive_loss_backward", [&]<typename Storage>() {
    using Real = compute_t<Storage>;
    Real values[kMaxTasks], grads[kMaxTasks] = {}, result[kMaxTasks];
    load<Storage>(losses, tasks, values);
    if (grad_weights) load<Storage>(*grad_weights, tasks, grads);
    const auto grad =
        grad_loss ? static_cast<Real>(*static_cast<const Storage*>(grad_loss->const_data_ptr())) : Real(0);
    adaptive_loss_backward<Real>(grad, grads, values, tasks, static_cast<Real>(alpha), detach_weights, result);
    auto* out = static_cast<Storage*>(grad_losses.mutable_data_ptr());
    for (int i = 0; i < tasks; ++i) out[i] = static_cast<Storage>(result[i]);
  });
  return grad_losses;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fashionbert_fast, CPU, m) {
  m.impl("adaptive_loss", TORCH_BOX(&forward));
  m.impl("adaptive_loss_backward", TORCH_BOX(&backward));
}

}  // namespace fashionbert
