// a @ b on CPU through torch.
//
// float32 goes to oneDNN (the entry that compiled models call) rather than to aten::matmul, whose MKL leaves the
// AVX-512 units of processors not made by Intel idle: there oneDNN is more than twice as fast. A torch built without
// oneDNN lacks the entry, hence the weak symbol; then float32 goes where every other dtype goes.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <type_traits>

#include "common/tensor.h"

extern "C" __attribute__((weak)) AOTITorchError aoti_torch_cpu__linear_pointwise(
    AtenTensorHandle x, AtenTensorHandle w, AtenTensorHandle* bias, const char* attribute, const double** scalars,
    int64_t scalars_length, const char** algorithm, AtenTensorHandle* result);

namespace fashionbert {

// Terms oneDNN sums in float32 at once: its one long sum over a whole row would err more than twice as much as MKL's
// (measured 2.2 times at 2048 terms; 1.2 times in sums of 256). Other dtypes round the result more than that.
constexpr int64_t kLongestSum = 256;
template <typename Product>
int64_t summed_at_once(int64_t terms) {
  return std::is_same_v<Product, float> ? std::min(terms, kLongestSum) : terms;
}

// A dense (rows, columns) matrix at `data`, outside autograd: products are taken by threads that know no `no_grad`.
template <typename T>
Tensor matrix_at(const T* data, int64_t rows, int64_t columns, const Tensor& like) {
  return torch::stable::from_blob(const_cast<T*>(data), {rows, columns}, {columns, 1}, like.device(),
                                  like.scalar_type());
}

// (m, k) @ (k, n), neither empty, dense; a fresh contiguous tensor.
inline Tensor matrix_product(const Tensor& a, const Tensor& b) {
  if (a.scalar_type() != ScalarType::Float || !aoti_torch_cpu__linear_pointwise) return torch::stable::matmul(a, b);
  const Tensor b_transposed = torch::stable::transpose(b, 0, 1);
  const char* no_algorithm = "";
  AtenTensorHandle result = nullptr;
  STD_TORCH_CHECK(aoti_torch_cpu__linear_pointwise(a.get(), b_transposed.get(), nullptr, "none", nullptr, 0,
                                                   &no_algorithm, &result) == 0,
                  "a float32 matrix product failed");
  return torch::stable::contiguous(Tensor(result));
}

// A product in parts of the summed dimension.
template <typename Product>
class ProductSum {
 public:
  void add(const Tensor& a, const Tensor& b) {
    Tensor part = matrix_product(a, b);
    if (!sum_) {
      sum_ = part;
      return;
    }
    auto* to = static_cast<Product*>(sum_->mutable_data_ptr());
    const auto* from = static_cast<const Product*>(part.const_data_ptr());
    const int64_t count = part.numel();
    for (int64_t i = 0; i < count; ++i) to[i] += from[i];
  }
  const Product* data() const { return static_cast<const Product*>(sum_->const_data_ptr()); }

 private:
  std::optional<Tensor> sum_;
};

}  // namespace fashionbert
