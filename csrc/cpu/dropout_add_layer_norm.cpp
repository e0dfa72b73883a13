// dropout_add_layer_norm on CPU: one pass over memory forward, one backward; between them a row stays in the first
// cache.
//
// The backward forms the sum anew from x and residual instead of reading a stored one. The residual is stored anyway
// (it is the input of the layer's products) and x takes the memory the sum would have taken, so this costs the backward
// one more read and saves the forward a write, which is dearer; and nothing is rounded on the way.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>

#include "common/dropout.h"
#include "cpu/rows.h"

namespace fashionbert {
namespace {

// The arguments, checked and contiguous.
struct Arguments {
  Tensor x, residual, ln_weight;
  std::optional<Tensor> bias;
  Dropout dropout;
  int64_t rows, width;

  Arguments(const Tensor& x_in, const Tensor& residual_in, const std::optional<Tensor>& bias_in,
            const Tensor& ln_weight_in, double probability, const std::optional<Tensor>& seed, int64_t site)
      : x(torch::stable::contiguous(x_in)),
        residual(torch::stable::contiguous(residual_in)),
        ln_weight(torch::stable::contiguous(ln_weight_in)),
        bias(contiguous(bias_in)) {
    STD_TORCH_CHECK(x.dim() == 2, "dropout_add_layer_norm: x must have shape (T, H)");
    rows = x.size(0);
    width = x.size(1);
    check_like_x(residual, "residual");
    check_parameter(ln_weight, "ln_weight");
    if (bias) check_parameter(*bias, "bias");
    if (probability == 0) return;
    STD_TORCH_CHECK(seed && seed->numel() == 1 && seed->scalar_type() == ScalarType::Long,
                    "dropout_add_layer_norm: seed must be one int64 number");
    const auto value = static_cast<uint64_t>(*static_cast<const int64_t*>(seed->const_data_ptr()));
    dropout = make_dropout(value, static_cast<uint32_t>(site), probability);
  }

  void check_like_x(const Tensor& tensor, const char* name) const {
    STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(0) == rows && tensor.size(1) == width &&
                        tensor.scalar_type() == x.scalar_type(),
                    "dropout_add_layer_norm: ", name, " must have the shape and dtype of x");
  }
  void check_parameter(const Tensor& tensor, const char* name) const {
    STD_TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == width && tensor.scalar_type() == x.scalar_type(),
                    "dropout_add_layer_norm: ", name, " must have shape (H,) and the dtype of x");
  }
};

// The sums residual + dropout(x + bias), a row at a time. One a thread: it owns the row's buffers.
template <typename Storage>
class SummedRows {
 public:
  using Real = compute_t<Storage>;

  explicit SummedRows(const Arguments& arguments)
      : arguments_(arguments),
        x_(static_cast<const Storage*>(arguments.x.const_data_ptr())),
        residual_(static_cast<const Storage*>(arguments.residual.const_data_ptr())),
        bias_(widened_parameters<Storage>(pointer(arguments.bias), arguments.width)),
        sum_(arguments.width),
        buffer_(kBuffered<Storage> ? 2 * arguments.width : 0),
        factors_((arguments.width + kDropoutBlock - 1) / kDropoutBlock * kDropoutBlock, 1.0f) {}

  // Forms row `row` and returns the sum of its elements; what it was multiplied by is in factors().
  Real load(int64_t row) {
    const int64_t width = arguments_.width;
    const auto* x = readable(x_ + row * width, width, buffer_.data());
    const auto* residual = readable(residual_ + row * width, width, buffer_.data() + width);
    const Real* bias = bias_.data();
    Real* sum = sum_.data();
    Real total = 0;
    if (!arguments_.dropout.active()) {
      FB_SIMD(reduction(+ : total))
      for (int64_t i = 0; i < width; ++i) total += sum[i] = wide(residual[i]) + (wide(x[i]) + bias[i]);
      return total;
    }
    for (int64_t first = 0; first < width; first += kDropoutBlock)
      dropout_factors(arguments_.dropout, 0, static_cast<uint32_t>(row), static_cast<uint32_t>(first / kDropoutBlock),
                      factors_.data() + first);
    const float* factors = factors_.data();
    FB_SIMD(reduction(+ : total))
    for (int64_t i = 0; i < width; ++i)
      total += sum[i] = wide(residual[i]) + (wide(x[i]) + bias[i]) * static_cast<Real>(factors[i]);
    return total;
  }

  Real* sum() { return sum_.data(); }
  const float* factors() const { return factors_.data(); }

 private:
  const Arguments& arguments_;
  const Storage *x_, *residual_;
  std::vector<Real> bias_, sum_, buffer_;
  std::vector<float> factors_;
};

template <typename Real>
struct Moments {
  Real mean, variance;
};

// Of `count` numbers whose sum is `total`. What that sum's rounding put into the mean is taken out by the sum of the
// distances from it, which matters to rows far from 0.
template <typename Real>
Moments<Real> moments(const Real* values, Real total, int64_t count) {
  const Real rough = total / static_cast<Real>(count);
  Real distances = 0, squares = 0;
  FB_SIMD(reduction(+ : distances, squares))
  for (int64_t i = 0; i < count; ++i) {
    const Real distance = values[i] - rough;
    distances += distance;
    squares += distance * distance;
  }
  const Real shift = distances / static_cast<Real>(count);
  return {rough + shift, std::max(Real(0), squares / static_cast<Real>(count) - shift * shift)};
}

template <typename Real, typename Out>
void normalise(const Real* values, Real mean, Real rstd, const Real* weight, const Real* bias, int64_t count, Out* to) {
  FB_SIMD()
  for (int64_t i = 0; i < count; ++i) put((values[i] - mean) * rstd * weight[i] + bias[i], to + i);
}

ScalarType stats_dtype(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

std::tuple<Tensor, Tensor> forward(Tensor x, Tensor residual, std::optional<Tensor> bias, Tensor ln_weight,
                                   Tensor ln_bias, double eps, double probability, std::optional<Tensor> seed,
                                   int64_t site) {
  const Arguments arguments(x, residual, bias, ln_weight, probability, seed, site);
  const int64_t rows = arguments.rows, width = arguments.width;
  arguments.check_parameter(ln_bias, "ln_bias");
  const Tensor ln_bias_dense = torch::stable::contiguous(ln_bias);
  Tensor y = torch::stable::new_empty(x, {rows, width});
  Tensor stats = torch::stable::new_empty(x, {rows, 2}, stats_dtype(x));
  dispatch_floating(x.scalar_type(), "dropout_add_layer_norm", [&]<typename Storage>() {
    using Real = compute_t<Storage>;
    const auto weights = widened_parameters<Storage>(&arguments.ln_weight, width);
    const auto biases = widened_parameters<Storage>(&ln_bias_dense, width);
    auto* to = static_cast<Storage*>(y.mutable_data_ptr());
    auto* stat = static_cast<Real*>(stats.mutable_data_ptr());
    torch::stable::parallel_for(0, rows, std::max<int64_t>(1, 16384 / (width + 1)), [&](int64_t begin, int64_t end) {
      SummedRows<Storage> summed(arguments);
      std::vector<Real> buffer(kBuffered<Storage> ? width : 0);
      for (int64_t row = begin; row < end; ++row) {
        const Real total = summed.load(row);
        const auto [mean, variance] = moments(summed.sum(), total, width);
        const Real rstd = Real(1) / std::sqrt(variance + static_cast<Real>(eps));
        auto* out = writable(to + row * width, buffer.data());
        normalise(summed.sum(), mean, rstd, weights.data(), biases.data(), width, out);
        written(out, width, to + row * width);
        stat[2 * row] = mean;
        stat[2 * row + 1] = rstd;
      }
    });
  });
  return {y, stats};
}

// sum := its normalised value n, and adds to the columns' sums; returns the means of w dy and w dy n.
template <typename In, typename Real>
std::pair<Real, Real> gather(const In* grad, const Real* weight, Real mean, Real rstd, int64_t width, Real* sum,
                             Real* grad_weight, Real* grad_bias) {
  Real of_grad = 0, of_product = 0;
  FB_SIMD(reduction(+ : of_grad, of_product))
  for (int64_t i = 0; i < width; ++i) {
    const Real n = (sum[i] - mean) * rstd, dy = wide(grad[i]), g = dy * weight[i];
    sum[i] = n;
    of_grad += g;
    of_product += g * n;
    grad_weight[i] += dy * n;
    grad_bias[i] += dy;
  }
  return {of_grad / static_cast<Real>(width), of_product / static_cast<Real>(width)};
}

// The gradient of residual: rstd (w dy - mean(w dy) - n mean(w dy n)).
template <typename In, typename Real>
Real sum_gradient(In grad, Real weight, Real n, const std::pair<Real, Real>& means, Real rstd) {
  return rstd * (wide(grad) * weight - means.first - n * means.second);
}

// Writes it, and adds it to `sums`, the gradient of bias.
template <typename In, typename Real, typename Out>
void scatter(const In* grad, const Real* weight, const Real* n, std::pair<Real, Real> means, Real rstd, int64_t width,
             Out* to, Real* sums) {
  FB_SIMD()
  for (int64_t i = 0; i < width; ++i) {
    const Real gradient = sum_gradient(grad[i], weight[i], n[i], means, rstd);
    sums[i] += gradient;
    put(gradient, to + i);
  }
}

// The same where dropout makes x's gradient another.
template <typename In, typename Real, typename Out>
void scatter_dropped(const In* grad, const Real* weight, const Real* n, std::pair<Real, Real> means, Real rstd,
                     const float* factors, int64_t width, Out* to, Out* to_x, Real* sums) {
  FB_SIMD()
  for (int64_t i = 0; i < width; ++i) {
    const Real gradient = sum_gradient(grad[i], weight[i], n[i], means, rstd);
    const Real of_x = gradient * static_cast<Real>(factors[i]);
    sums[i] += of_x;
    put(gradient, to + i);
    put(of_x, to_x + i);
  }
}

// Where the backward writes the gradients of rows, and what it reads besides the sums.
template <typename Storage>
struct Gradients {
  using Real = compute_t<Storage>;
  const Storage* grad;
  const Real *weight, *stats;
  Storage *residual, *x;  // x: null where nothing drops
  int64_t width;

  // sums: width numbers each for the gradients of bias, ln_weight and ln_bias.
  void row(int64_t row, SummedRows<Storage>& summed, Real* buffer, Real* sums) const {
    summed.load(row);
    const Real mean = stats[2 * row], rstd = stats[2 * row + 1];
    const auto* dy = readable(grad + row * width, width, buffer);
    const auto means = gather(dy, weight, mean, rstd, width, summed.sum(), sums + width, sums + 2 * width);
    auto* to = writable(residual + row * width, buffer + width);
    if (x) {
      auto* to_x = writable(x + row * width, buffer + 2 * width);
      scatter_dropped(dy, weight, summed.sum(), means, rstd, summed.factors(), width, to, to_x, sums);
      written(to_x, width, x + row * width);
    } else {
      scatter(dy, weight, summed.sum(), means, rstd, width, to, sums);
    }
    written(to, width, residual + row * width);
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(Tensor grad_in, Tensor x, Tensor residual,
                                                            std::optional<Tensor> bias, Tensor ln_weight,
                                                            Tensor stats_in, double probability,
                                                            std::optional<Tensor> seed, int64_t site) {
  const Arguments arguments(x, residual, bias, ln_weight, probability, seed, site);
  const int64_t rows = arguments.rows, width = arguments.width;
  arguments.check_like_x(grad_in, "grad");
  STD_TORCH_CHECK(stats_in.numel() == 2 * rows && stats_in.scalar_type() == stats_dtype(x),
                  "dropout_add_layer_norm_backward: stats must be what dropout_add_layer_norm returned");
  const Tensor grad = torch::stable::contiguous(grad_in), stats = torch::stable::contiguous(stats_in);
  const bool drops = arguments.dropout.active();
  Tensor grad_residual = torch::stable::new_empty(x, {rows, width});
  Tensor grad_x = drops ? torch::stable::new_empty(x, {rows, width}) : torch::stable::new_empty(x, {0});
  Tensor grad_bias = torch::stable::new_empty(x, {bias ? width : 0});
  Tensor grad_ln_weight = torch::stable::new_empty(x, {width}), grad_ln_bias = torch::stable::new_empty(x, {width});
  dispatch_floating(x.scalar_type(), "dropout_add_layer_norm_backward", [&]<typename Storage>() {
    using Real = compute_t<Storage>;
    const auto out = [](const Tensor& tensor) { return static_cast<Storage*>(tensor.mutable_data_ptr()); };
    const auto weights = widened_parameters<Storage>(&arguments.ln_weight, width);
    const Gradients<Storage> gradients{static_cast<const Storage*>(grad.const_data_ptr()),
                                       weights.data(),
                                       static_cast<const Real*>(stats.const_data_ptr()),
                                       out(grad_residual),
                                       drops ? out(grad_x) : nullptr,
                                       width};
    ColumnSums<Real> sums(rows, 3 * width);
    torch::stable::parallel_for(0, sums.blocks(), 1, [&](int64_t begin, int64_t end) {
      SummedRows<Storage> summed(arguments);
      std::vector<Real> buffer(kBuffered<Storage> ? 3 * width : 0);
      for_row_blocks(rows, begin, end, [&](int64_t block, int64_t first, int64_t last) {
        Real* block_sums = sums.zeroed(block);
        for (int64_t row = first; row < last; ++row) gradients.row(row, summed, buffer.data(), block_sums);
      });
    });
    if (bias) sums.total(0, width, out(grad_bias));
    sums.total(width, width, out(grad_ln_weight));
    sums.total(2 * width, width, out(grad_ln_bias));
  });
  return {grad_x, grad_residual, grad_bias, grad_ln_weight, grad_ln_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fashionbert_fast, CPU, m) {
  m.impl("dropout_add_layer_norm", TORCH_BOX(&forward));
  m.impl("dropout_add_layer_norm_backward", TORCH_BOX(&backward));
}

}  // namespace fashionbert
