// bias_gelu on CPU: one pass forward; one backward, which sums the bias's gradient on the way.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "common/gelu.h"
#include "cpu/rows.h"

namespace fashionbert {
namespace {

void check(const Tensor& x, const std::optional<Tensor>& bias) {
  STD_TORCH_CHECK(x.dim() == 2, "bias_gelu: x must have shape (T, F)");
  STD_TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == x.size(1) && bias->scalar_type() == x.scalar_type()),
                  "bias_gelu: bias must have shape (F,) and the dtype of x");
}

// `to` may be the float buffer that float16 is rounded from.
template <typename In, typename Real, typename Out>
void gelu_row(const In* x, const Real* bias, int64_t width, Out* to) {
  FB_SIMD()
  for (int64_t i = 0; i < width; ++i) put(gelu(wide(x[i]) + bias[i]), to + i);
}

// The gradient of one row, added to `sums` as well.
template <typename In, typename Real, typename Out>
void gelu_row_backward(const In* grad, const In* x, const Real* bias, int64_t width, Out* to, Real* sums) {
  FB_SIMD()
  for (int64_t i = 0; i < width; ++i) {
    const Real gradient = wide(grad[i]) * gelu_derivative(wide(x[i]) + bias[i]);
    sums[i] += gradient;
    put(gradient, to + i);
  }
}

Tensor forward(Tensor x_in, std::optional<Tensor> bias_in) {
  check(x_in, bias_in);
  const Tensor x = torch::stable::contiguous(x_in);
  const std::optional<Tensor> bias = contiguous(bias_in);
  const int64_t rows = x.size(0), width = x.size(1);
  Tensor y = torch::stable::new_empty(x, {rows, width});
  dispatch_floating(x.scalar_type(), "bias_gelu", [&]<typename Storage>() {
    using Real = compute_t<Storage>;
    const auto bias_values = widened_parameters<Storage>(pointer(bias), width);
    const auto* from = static_cast<const Storage*>(x.const_data_ptr());
    auto* to = static_cast<Storage*>(y.mutable_data_ptr());
    torch::stable::parallel_for(0, rows, std::max<int64_t>(1, 16384 / (width + 1)), [&](int64_t begin, int64_t end) {
      std::vector<Real> buffer(kBuffered<Storage> ? 2 * width : 0);
      for (int64_t row = begin; row < end; ++row) {
        auto* out = writable(to + row * width, buffer.data() + width);
        gelu_row(readable(from + row * width, width, buffer.data()), bias_values.data(), width, out);
        written(out, width, to + row * width);
      }
    });
  });
  return y;
}

// The gradients of x and of the bias; the latter empty where there is none.
std::tuple<Tensor, Tensor> backward(Tensor grad_in, Tensor x_in, std::optional<Tensor> bias_in) {
  check(x_in, bias_in);
  STD_TORCH_CHECK(grad_in.dim() == 2 && grad_in.size(0) == x_in.size(0) && grad_in.size(1) == x_in.size(1) &&
                      grad_in.scalar_type() == x_in.scalar_type(),
                  "bias_gelu_backward: grad must have the shape and dtype of x");
  const Tensor grad = torch::stable::contiguous(grad_in), x = torch::stable::contiguous(x_in);
  const std::optional<Tensor> bias = contiguous(bias_in);
  const int64_t rows = x.size(0), width = x.size(1);
  Tensor grad_x = torch::stable::new_empty(x, {rows, width});
  Tensor grad_bias = torch::stable::new_empty(x, {bias ? width : 0});
  dispatch_floating(x.scalar_type(), "bias_gelu_backward", [&]<typename Storage>() {
    using Real = compute_t<Storage>;
    const auto bias_values = widened_parameters<Storage>(pointer(bias), width);
    const auto* grads = static_cast<const Storage*>(grad.const_data_ptr());
    const auto* from = static_cast<const Storage*>(x.const_data_ptr());
    auto* to = static_cast<Storage*>(grad_x.mutable_data_ptr());
    ColumnSums<Real> sums(rows, width);
    torch::stable::parallel_for(0, sums.blocks(), 1, [&](int64_t begin, int64_t end) {
      std::vector<Real> buffer(kBuffered<Storage> ? 3 * width : 0);
      for_row_blocks(rows, begin, end, [&](int64_t block, int64_t first, int64_t last) {
        Real* block_sums = sums.zeroed(block);
        for (int64_t row = first; row < last; ++row) {
          auto* out = writable(to + row * width, buffer.data() + 2 * width);
          gelu_row_backward(readable(grads + row * width, width, buffer.data()),
                            readable(from + row * width, width, buffer.data() + width), bias_values.data(), width, out,
                            block_sums);
          written(out, width, to + row * width);
        }
      });
    });
    if (bias) sums.total(0, width, static_cast<Storage*>(grad_bias.mutable_data_ptr()));
  });
  return {grad_x, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fashionbert_fast, CPU, m) {
  m.impl("bias_gelu", TORCH_BOX(&forward));
  m.impl("bias_gelu_backward", TORCH_BOX(&backward));
}

}  // namespace fashionbert
