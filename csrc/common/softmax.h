// Online softmax, host and device: the maximum of the numbers read so far and the sum of e^(z - max), by pieces that
// meet by moving both to a common maximum.
#pragma once

#include <limits>

#include "common/exp.h"

namespace fashionbert {

template <typename Real>
struct SoftmaxPart {
  Real max = -std::numeric_limits<Real>::infinity();
  Real sum = 0;
};

template <typename Real>
FB_HOST_DEVICE SoftmaxPart<Real> softmax_rescale(const SoftmaxPart<Real>& part, Real max) {
  if (part.sum == Real(0)) return {max, Real(0)};
  return {max, part.sum * exp_nonpositive(part.max - max)};
}

template <typename Real>
FB_HOST_DEVICE SoftmaxPart<Real> softmax_merge(const SoftmaxPart<Real>& a, const SoftmaxPart<Real>& b) {
  const Real max = a.max > b.max ? a.max : b.max;
  return {max, softmax_rescale(a, max).sum + softmax_rescale(b, max).sum};
}

// The part of `count` >= 1 numbers.
template <typename Real>
FB_HOST_DEVICE SoftmaxPart<Real> softmax_part(const Real* values, int count) {
  Real max = values[0], sum = 0;
  FB_SIMD(reduction(max : max))
  for (int i = 0; i < count; ++i) max = values[i] > max ? values[i] : max;
  FB_SIMD(reduction(+ : sum))
  for (int i = 0; i < count; ++i) sum += exp_nonpositive(values[i] - max);
  return {max, sum};
}

}  // namespace fashionbert
