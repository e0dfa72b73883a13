// a @ b on CPU through torch.
//
// float32 goes to oneDNN (the entry that compiled models call) rather than to aten::matmul, whose MKL leaves the
// AVX-512 units of processors not made by Intel idle: there oneDNN is more than twice as fast. A torch built without
// oneDNN lacks the entry, hence the weak symbol; then float32 goes where every other dtype goes.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "common/tensor.h"

extern "C" __attribute__((weak)) AOTITorchError aoti_torch_cpu__linear_pointwise(
    AtenTensorHandle x, AtenTensorHandle w, AtenTensorHandle* bias, const char* attribute, const double** scalars,
    int64_t scalars_length, const char** algorithm, AtenTensorHandle* result);

namespace fashionbert {

// (m, k) @ (k, n), neither empty; a fresh contiguous tensor.
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

}  // namespace fashionbert
