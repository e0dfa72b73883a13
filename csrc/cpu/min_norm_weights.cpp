// min_norm_weights on CPU: at most sixteen numbers, one thread.
#include "common/min_norm_weights.h"

#include <torch/csrc/stable/library.h>

#include "common/tensor.h"

namespace fashionbert {
namespace {

Tensor solve(Tensor gram) {
  const int tasks = checked_gram_size(gram, kMaxMinNormTasks);
  Tensor weights = new_vector(gram, tasks);
  dispatch_floating(gram.scalar_type(), "min_norm_weights", [&]<typename Storage>() {
    double solved[kMaxMinNormTasks];
    min_norm_weights(static_cast<const Storage*>(gram.const_data_ptr()), gram.stride(0), gram.stride(1), tasks, solved);
    auto* out = static_cast<Storage*>(weights.mutable_data_ptr());
    for (int i = 0; i < tasks; ++i) out[i] = static_cast<Storage>(solved[i]);
  });
  return weights;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fashionbert_fast, CPU, m) { m.impl("min_norm_weights", TORCH_BOX(&solve)); }

}  // namespace fashionbert
