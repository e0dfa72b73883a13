// cross_entropy_residual_ on CPU: what linear_cross_entropy does to a block of logits between its matrix products. Each
// row becomes softmax - one-hot, in place. Two passes over the row (online softmax, then the gradient): a row of a
// vocabulary does not fit the first cache, and the second exponential is cheaper than keeping the first in float32.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/cross_entropy_rows.h"
#include "common/softmax.h"
#include "cpu/convert.h"

namespace fashionbert {
namespace {

constexpr int kChunk = 1024;

// Calls use(first column, count, logits + bias) for each chunk of a row, in the compute type.
template <typename Logit, typename Use>
void for_biased_chunks(const CrossEntropyRows<Logit>& rows, int64_t m, Use&& use) {
  using Real = compute_t<Logit>;
  alignas(64) Real buffer[kChunk], bias_buffer[kChunk];
  for (int64_t first = 0; first < rows.width; first += kChunk) {
    const int count = static_cast<int>(std::min<int64_t>(kChunk, rows.width - first));
    const Real* logits = widened<Real>(rows.logits + m * rows.stride + first, count, buffer);
    if (rows.bias) {
      const Real* bias = widened<Real>(rows.bias + first, count, bias_buffer);
      FB_SIMD()
      for (int i = 0; i < count; ++i) buffer[i] = logits[i] + bias[i];
      logits = buffer;
    }
    use(first, count, logits);
  }
}

template <typename Logit>
compute_t<Logit> residual_of_row(const CrossEntropyRows<Logit>& rows, int64_t m) {
  using Real = compute_t<Logit>;
  const int64_t label = rows.labels[m];
  Logit* row = rows.logits + m * rows.stride;
  if (label == kIgnored) {
    std::fill_n(row, rows.width, Logit(0));
    return Real(0);
  }
  SoftmaxPart<Real> whole;
  Real labelled = 0;
  for_biased_chunks(rows, m, [&](int64_t first, int count, const Real* z) {
    whole = softmax_merge(whole, softmax_part(z, count));
    if (label >= first && label < first + count) labelled = z[label - first];
  });
  const Real scale = Real(1) / whole.sum;
  for_biased_chunks(rows, m, [&](int64_t first, int count, const Real* z) {
    alignas(64) Real gradient[kChunk];
    FB_SIMD()
    for (int i = 0; i < count; ++i) gradient[i] = exp_nonpositive(z[i] - whole.max) * scale;
    if (label >= first && label < first + count) gradient[label - first] -= Real(1);
    if constexpr (std::is_same_v<Logit, Real>) {
      std::copy_n(gradient, count, row + first);
    } else {
      narrow(gradient, count, row + first);
    }
  });
  return (whole.max - labelled) + std::log(whole.sum);
}

Tensor residual(Tensor logits, std::optional<Tensor> bias, Tensor labels) {
  check_cross_entropy(logits, bias, labels);
  const auto* label = static_cast<const int64_t*>(labels.const_data_ptr());
  for (int64_t m = 0; m < labels.size(0); ++m) {
    STD_TORCH_CHECK((label[m] >= 0 && label[m] < logits.size(1)) || label[m] == kIgnored,
                    "cross_entropy_residual_: labels[", m, "] is ", label[m], " but there are ", logits.size(1),
                    " classes");
  }
  const bool wide = logits.scalar_type() == ScalarType::Double;
  Tensor losses = torch::stable::new_empty(logits, {logits.size(0)}, wide ? ScalarType::Double : ScalarType::Float);
  dispatch_floating(logits.scalar_type(), "cross_entropy_residual_", [&]<typename Logit>() {
    const auto rows = cross_entropy_rows<Logit>(logits, bias, labels);
    auto* out = static_cast<compute_t<Logit>*>(losses.mutable_data_ptr());
    torch::stable::parallel_for(0, rows.count, row_grain(rows.width), [&](int64_t begin, int64_t end) {
      for (int64_t m = begin; m < end; ++m) out[m] = residual_of_row(rows, m);
    });
  });
  return losses;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fashionbert_fast, CPU, m) { m.impl("cross_entropy_residual_", TORCH_BOX(&residual)); }

}  // namespace fashionbert
