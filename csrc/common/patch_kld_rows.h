// patch_kld's arguments as the kernels see them, checked; shared by cpu/ and cuda/.
#pragma once

#include <cstdint>
#include <optional>
#include <type_traits>

#include "common/patch_kld.h"
#include "common/tensor.h"

namespace fashionbert {

// `count` rows of `width` logits, row m with the target row index[m], or m where there is no index.
template <typename Logit, typename Target>
struct KldRows {
  const Logit* logits;
  const Target* targets;
  const int64_t* index;
  int64_t logits_stride, targets_stride;
  int64_t count, width;
};

// The tensors behind KldRows, elements of a row side by side; copies only what is strided within a row.
struct KldTensors {
  Tensor logits, target;
  std::optional<Tensor> rows;

  template <typename Logit, typename Target>
  KldRows<Logit, Target> view() const {
    return {static_cast<const Logit*>(logits.const_data_ptr()),
            static_cast<const Target*>(target.const_data_ptr()),
            rows ? static_cast<const int64_t*>(rows->const_data_ptr()) : nullptr,
            logits.stride(0),
            target.stride(0),
            logits.size(0),
            logits.size(1)};
  }
};

inline Tensor with_contiguous_rows(const Tensor& tensor) {
  return tensor.stride(tensor.dim() - 1) == 1 ? tensor : torch::stable::contiguous(tensor);
}

inline KldTensors checked_kld_tensors(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& rows) {
  STD_TORCH_CHECK(logits.dim() == 2, "patch_kld: logits must have shape (M, D)");
  STD_TORCH_CHECK(target.dim() == 2 && target.size(1) == logits.size(1),
                  "patch_kld: target must have as many columns as logits");
  STD_TORCH_CHECK(target.device() == logits.device(), "patch_kld: target must be on the device of logits");
  if (!rows) {
    STD_TORCH_CHECK(target.size(0) == logits.size(0), "patch_kld: target must have as many rows as logits");
    return {with_contiguous_rows(logits), with_contiguous_rows(target), std::nullopt};
  }
  STD_TORCH_CHECK(rows->dim() == 1 && rows->size(0) == logits.size(0) && rows->scalar_type() == ScalarType::Long &&
                      rows->device() == logits.device(),
                  "patch_kld: target_rows must be int64, one for each row of logits, on their device");
  STD_TORCH_CHECK(target.size(0) > 0 || logits.size(0) == 0, "patch_kld: target has no rows to gather");
  return {with_contiguous_rows(logits), with_contiguous_rows(target), with_contiguous_rows(*rows)};
}

// Logits that patch_kld_residual_ can overwrite.
inline void check_residual_logits(const Tensor& logits) {
  STD_TORCH_CHECK(logits.dim() == 2 && (logits.size(1) <= 1 || logits.stride(1) == 1),
                  "patch_kld_residual_: logits must have shape (M, D), the elements of a row side by side");
}

// For a CPU, where the index can be read: every row it names exists (or is ignored, where that is allowed).
inline void check_target_rows(const KldTensors& tensors, bool may_ignore) {
  if (!tensors.rows) return;
  const auto* index = static_cast<const int64_t*>(tensors.rows->const_data_ptr());
  const int64_t most = tensors.target.size(0);
  for (int64_t m = 0; m < tensors.rows->size(0); ++m) {
    STD_TORCH_CHECK((index[m] >= 0 && index[m] < most) || (may_ignore && index[m] == kIgnored),
                    "patch_kld: target_rows[", m, "] is ", index[m], " but target has ", most, " rows");
  }
}

// What a dtype computes in, as a dtype.
inline ScalarType kld_compute_dtype(const Tensor& logits) {
  return logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// What the forward saved of each row, laid out as KldRow.
inline Tensor checked_kld_saved(const Tensor& saved, const Tensor& grad_loss, const Tensor& logits) {
  const ScalarType dtype = kld_compute_dtype(logits);
  STD_TORCH_CHECK(saved.dim() == 2 && saved.size(0) == logits.size(0) && saved.size(1) == kKldRowSize &&
                      saved.scalar_type() == dtype && saved.device() == logits.device(),
                  "patch_kld_backward: rows must be what patch_kld returned");
  STD_TORCH_CHECK(grad_loss.dim() == 0 && grad_loss.scalar_type() == dtype && grad_loss.device() == logits.device(),
                  "patch_kld_backward: grad_loss must be a scalar of the loss's dtype on the device of logits");
  return torch::stable::contiguous(saved);
}

// float64 proves the gradient on a CPU; on a GPU its kernels spill registers and nothing would use them.
#if defined(__CUDACC__)
inline constexpr bool kFloat64Kernels = false;
#else
inline constexpr bool kFloat64Kernels = true;
#endif

// Calls body.template operator()<Logit, Target>() for both dtypes: any two of float32, bfloat16 and float16, or float64
// for both (further mixtures would only cost compile time).
template <typename Body>
void dispatch_kld(const Tensor& logits, const Tensor& target, Body&& body) {
  dispatch_floating(logits.scalar_type(), "patch_kld", [&]<typename Logit>() {
    dispatch_floating(target.scalar_type(), "patch_kld", [&]<typename Target>() {
      constexpr bool kSame = std::is_same_v<compute_t<Logit>, compute_t<Target>>;
      if constexpr (kSame && (kFloat64Kernels || sizeof(Logit) < 8)) {
        body.template operator()<Logit, Target>();
      } else {
        STD_TORCH_CHECK(false, "patch_kld: float64 takes float64 logits and targets both, on a CPU");
      }
    });
  });
}

}  // namespace fashionbert
