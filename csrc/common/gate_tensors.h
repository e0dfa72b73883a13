// The three or four task gradients at the gate as torch hands them over, checked; shared by cpu/ and cuda/.
#pragma once

#include <optional>

#include "common/task_gradients.h"
#include "common/tensor.h"

namespace fashionbert {

struct GateTensors {
  const Tensor &a, &b, &c;
  const std::optional<Tensor>& d;

  // Refuses what is not contiguous, of one shape and dtype.
  GateTensors(const Tensor& a, const Tensor& b, const Tensor& c, const std::optional<Tensor>& d)
      : a(a), b(b), c(c), d(d) {
    for (const Tensor* other : {&a, &b, &c, d ? &*d : &a}) {
      STD_TORCH_CHECK(other->numel() == a.numel() && other->scalar_type() == a.scalar_type() && other->is_contiguous(),
                      "task gradients must be contiguous, of one shape and dtype");
    }
  }

  int64_t count() const { return a.numel(); }

  template <typename Storage, int kTasks>
  OfTasks<const Storage*, kTasks> pointers() const {
    OfTasks<const Storage*, kTasks> result;
    const Tensor* tensors[] = {&a, &b, &c, d ? &*d : nullptr};
    for (int task = 0; task < kTasks; ++task)
      result.of[task] = static_cast<const Storage*>(tensors[task]->const_data_ptr());
    return result;
  }
};

// The float32 weights of the task gradients.
inline const float* checked_weights(const Tensor& weights, int tasks) {
  STD_TORCH_CHECK(weights.numel() == tasks && weights.scalar_type() == ScalarType::Float && weights.is_contiguous(),
                  "weights must be ", tasks, " contiguous float32 numbers");
  return static_cast<const float*>(weights.const_data_ptr());
}

}  // namespace fashionbert
