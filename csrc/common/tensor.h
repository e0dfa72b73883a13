// Small helpers over torch's stable tensor, shared by cpu/ and cuda/: dtype dispatch and checks.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

namespace fashionbert {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The type arithmetic is done in: float64 stays itself (gradcheck), everything narrower computes in float32.
template <typename Storage>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};
template <typename Storage>
using compute_t = typename ComputeType<Storage>::type;

// T of a vector of T task losses, at most `most`.
inline int checked_task_count(const Tensor& losses, int most) {
  STD_TORCH_CHECK(losses.dim() == 1 && losses.size(0) >= 1 && losses.size(0) <= most,
                  "losses must be a vector of 1 to ", most, " task losses");
  return static_cast<int>(losses.size(0));
}

// Calls body.template operator()<Storage>() for the tensor's floating dtype.
template <typename Body>
void dispatch_floating(ScalarType dtype, const char* op, Body&& body) {
  switch (dtype) {
    case ScalarType::Double:
      body.template operator()<double>();
      return;
    case ScalarType::Float:
      body.template operator()<float>();
      return;
    case ScalarType::BFloat16:
      body.template operator()<c10::BFloat16>();
      return;
    case ScalarType::Half:
      body.template operator()<c10::Half>();
      return;
    default:
      STD_TORCH_CHECK(false, op, ": dtype must be float32, bfloat16, float16 or float64");
  }
}

}  // namespace fashionbert
