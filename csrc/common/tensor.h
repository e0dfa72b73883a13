// Small helpers over torch's stable tensor, shared by cpu/ and cuda/: dtype dispatch and checks.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
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

// Rows a thread takes at least: about 16k elements, some ten microseconds.
inline int64_t row_grain(int64_t width) { return width < 16384 ? 16384 / (width + 1) + 1 : 1; }

// A row whose target row or label is this counts for nothing, where an operator says so: torch's ignore_index.
constexpr int64_t kIgnored = -100;

// An uninitialised scalar or vector like `like`. torch::stable::new_empty costs twice as much through the dispatcher,
// and allocation is most of what an operator over three numbers does.
inline Tensor new_contiguous(const Tensor& like, int64_t dim, int64_t size) {
  int32_t dtype, device;
  STD_TORCH_CHECK(aoti_torch_get_dtype(like.get(), &dtype) == 0 && aoti_torch_get_device_type(like.get(), &device) == 0,
                  "a tensor without dtype or device");
  const int64_t stride = 1;
  AtenTensorHandle handle;
  STD_TORCH_CHECK(aoti_torch_empty_strided(dim, &size, &stride, dtype, device, like.get_device_index(), &handle) == 0,
                  "no memory for ", size, " numbers");
  return Tensor(handle);
}
inline Tensor new_scalar(const Tensor& like) { return new_contiguous(like, 0, 1); }
inline Tensor new_vector(const Tensor& like, int64_t size) { return new_contiguous(like, 1, size); }

// T of a vector of T task losses, at most `most`.
inline int checked_task_count(const Tensor& losses, int most) {
  STD_TORCH_CHECK(losses.dim() == 1 && losses.size(0) >= 1 && losses.size(0) <= most,
                  "losses must be a vector of 1 to ", most, " task losses");
  return static_cast<int>(losses.size(0));
}

// T of the (T, T) Gram matrix of at most `most` task gradients.
inline int checked_gram_size(const Tensor& gram, int most) {
  STD_TORCH_CHECK(gram.dim() == 2 && gram.size(0) == gram.size(1) && gram.size(0) >= 1 && gram.size(0) <= most,
                  "gram must be a square matrix of 1 to ", most, " tasks");
  return static_cast<int>(gram.size(0));
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
