// cross_entropy_residual_'s arguments as the kernels see them, checked; shared by cpu/ and cuda/.
#pragma once

#include <cstdint>
#include <optional>

#include "common/tensor.h"

namespace fashionbert {

// `count` rows of `width` logits, `stride` apart, to be overwritten; the bias, where there is one, is not in them yet.
template <typename Logit>
struct CrossEntropyRows {
  Logit* logits;
  const Logit* bias;
  const int64_t* labels;
  int64_t stride, count, width;
};

inline void check_cross_entropy(const Tensor& logits, const std::optional<Tensor>& bias, const Tensor& labels) {
  STD_TORCH_CHECK(logits.dim() == 2 && (logits.size(1) <= 1 || logits.stride(1) == 1),
                  "cross_entropy_residual_: logits must have shape (M, V), the elements of a row side by side");
  STD_TORCH_CHECK(labels.dim() == 1 && labels.size(0) == logits.size(0) && labels.scalar_type() == ScalarType::Long &&
                      labels.device() == logits.device() && labels.is_contiguous(),
                  "cross_entropy_residual_: labels must be int64, one for each row of logits, on their device");
  STD_TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == logits.size(1) && bias->is_contiguous() &&
                            bias->scalar_type() == logits.scalar_type() && bias->device() == logits.device()),
                  "cross_entropy_residual_: bias must have one number for each column of logits, of their dtype");
}

template <typename Logit>
CrossEntropyRows<Logit> cross_entropy_rows(Tensor& logits, const std::optional<Tensor>& bias, const Tensor& labels) {
  return {static_cast<Logit*>(logits.mutable_data_ptr()),
          bias ? static_cast<const Logit*>(bias->const_data_ptr()) : nullptr,
          static_cast<const int64_t*>(labels.const_data_ptr()),
          logits.stride(0),
          logits.size(0),
          logits.size(1)};
}

}  // namespace fashionbert
