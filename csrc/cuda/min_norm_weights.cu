// min_norm_weights on CUDA: one launch of one thread, no host synchronisation. Launch latency is nearly the whole cost,
// which is why this is CUDA C++ and not Triton.
#include "common/min_norm_weights.h"

#include <torch/csrc/stable/library.h>

#include "common/tensor.h"
#include "cuda/launch.h"

namespace fashionbert {
namespace {

template <typename Storage>
__global__ void solve_kernel(const Storage* gram, int64_t row, int64_t column, int tasks, Storage* weights) {
  double solved[kMaxMinNormTasks];
  min_norm_weights(gram, row, column, tasks, solved);
  FB_UNROLL for (int i = 0; i < kMaxMinNormTasks; ++i) {
    if (i < tasks) weights[i] = static_cast<Storage>(solved[i]);
  }
}

Tensor solve(Tensor gram) {
  const int tasks = checked_gram_size(gram, kMaxMinNormTasks);
  torch::stable::accelerator::DeviceGuard guard(gram.get_device_index());
  Tensor weights = new_vector(gram, tasks);
  dispatch_floating(gram.scalar_type(), "min_norm_weights", [&]<typename Storage>() {
    launch("min_norm_weights", solve_kernel<Storage>, 1, 1, current_stream(gram),
           static_cast<const Storage*>(gram.const_data_ptr()), gram.stride(0), gram.stride(1), tasks,
           static_cast<Storage*>(weights.mutable_data_ptr()));
  });
  return weights;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fashionbert_fast, CUDA, m) { m.impl("min_norm_weights", TORCH_BOX(&solve)); }

}  // namespace fashionbert
