// adaptive_loss on CUDA: one launch of one thread, everything in registers, no host synchronisation. Launch latency is
// the whole cost, which is why this is CUDA C++ and not Triton.
#include "common/adaptive_loss.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "common/tensor.h"
#include "cuda/launch.h"

namespace fashionbert {
namespace {

template <typename Storage>
__global__ void forward_kernel(const Storage* losses, int64_t stride, int tasks, compute_t<Storage> alpha,
                               Storage* loss, Storage* weights) {
  using Real = compute_t<Storage>;
  Real values[kMaxTasks], solved[kMaxTasks];
  FB_FOR_TASKS(i, tasks) values[i] = static_cast<Real>(losses[i * stride]);
  *loss = static_cast<Storage>(adaptive_loss_forward<Real>(values, tasks, alpha, solved));
  FB_FOR_TASKS(i, tasks) weights[i] = static_cast<Storage>(solved[i]);
}

// A null gradient is zero.
template <typename Storage>
__global__ void backward_kernel(const Storage* grad_loss, const Storage* grad_weights, int64_t grad_stride,
                                const Storage* losses, int64_t stride, int tasks, compute_t<Storage> alpha,
                                bool detach_weights, Storage* grad_losses) {
  using Real = compute_t<Storage>;
  Real values[kMaxTasks], grads[kMaxTasks], result[kMaxTasks];
  FB_FOR_TASKS(i, tasks) {
    values[i] = static_cast<Real>(losses[i * stride]);
    grads[i] = grad_weights ? static_cast<Real>(grad_weights[i * grad_stride]) : Real(0);
  }
  const Real grad = grad_loss ? static_cast<Real>(*grad_loss) : Real(0);
  adaptive_loss_backward<Real>(grad, grads, values, tasks, alpha, detach_weights, result);
  FB_FOR_TASKS(i, tasks) grad_losses[i] = static_cast<Storage>(result[i]);
}

std::tuple<Tensor, Tensor> forward(Tensor losses, double alpha, bool detach_weights) {
  const int tasks = checked_task_count(losses, kMaxTasks);
  torch::stable::accelerator::DeviceGuard guard(losses.get_device_index());
  Tensor loss = new_scalar(losses);
  Tensor weights = new_vector(losses, tasks);
  dispatch_floating(losses.scalar_type(), "adaptive_loss", [&]<typename Storage>() {
    launch("adaptive_loss", forward_kernel<Storage>, 1, 1, current_stream(losses),
           static_cast<const Storage*>(losses.const_data_ptr()), losses.stride(0), tasks,
           static_cast<compute_t<Storage>>(alpha), static_cast<Storage*>(loss.mutable_data_ptr()),
           static_cast<Storage*>(weights.mutable_data_ptr()));
  });
  return {loss, weights};
}

Tensor backward(std::optional<Tensor> grad_loss, std::optional<Tensor> grad_weights, Tensor losses, double alpha,
                bool detach_weights) {
  const int tasks = checked_task_count(losses, kMaxTasks);
  torch::stable::accelerator::DeviceGuard guard(losses.get_device_index());
  Tensor grad_losses = new_vector(losses, tasks);
  dispatch_floating(losses.scalar_type(), "adaptive_loss_backward", [&]<typename Storage>() {
    launch("adaptive_loss_backward", backward_kernel<Storage>, 1, 1, current_stream(losses),
           grad_loss ? static_cast<const Storage*>(grad_loss->const_data_ptr()) : nullptr,
           grad_weights ? static_cast<const Storage*>(grad_weights->const_data_ptr()) : nullptr,
           grad_weights ? grad_weights->stride(0) : 0, static_cast<const Storage*>(losses.const_data_ptr()),
           losses.stride(0), tasks, static_cast<compute_t<Storage>>(alpha), detach_weights,
           static_cast<Storage*>(grad_losses.mutable_data_ptr()));
  });
  return grad_losses;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fashionbert_fast, CUDA, m) {
  m.impl("adaptive_loss", TORCH_BOX(&forward));
  m.impl("adaptive_loss_backward", TORCH_BOX(&backward));
}

}  // namespace fashionbert
