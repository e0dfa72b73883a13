// The patch KLD of FashionBERT, host and device: KL(softmax(t) || softmax(z)) of a row of targets t and logits z.
//
//   KL = sum_i p_i ((t_i - max t) - (z_i - max z)) + log(sum_i e^(z_i - max z) / sum_i e^(t_i - max t))
//   dKL/dz_i = q_i - p_i
//
// A row is read once, in pieces (online softmax): each piece is summed against its own maxima, and pieces meet by
// moving both to common maxima. Working from the maxima keeps logits of +-1e4 as exact as small ones, and the one
// logarithm of a ratio spares the cancellation of two large ones.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "common/macros.h"

namespace fashionbert {

// Sums over the part of a row read so far; q is of the logits, p of the targets. No elements: both sums 0.
template <typename Real>
struct KldPart {
  Real max_q = -std::numeric_limits<Real>::infinity();
  Real sum_q = 0;  // of e^(z - max_q)
  Real max_p = -std::numeric_limits<Real>::infinity();
  Real sum_p = 0;  // of e^(t - max_p)
  Real sum_d = 0;  // of e^(t - max_p) ((t - max_p) - (z - max_q))
};

// What the backward needs of a row: q_i = e^(z_i - max_q) scale_q, p_i = e^(t_i - max_p) scale_p. Maxima and scales
// rather than log-sum-exps: at z = 1e4 the rounding of a float32 log-sum-exp alone is an error of 5e-4 in q.
template <typename Real>
struct KldRow {
  Real max_q, scale_q, max_p, scale_p;
};
constexpr int kKldRowSize = 4;

// e^x for x <= 0. On the host a branch-free polynomial (Cephes' expf, 1 ulp), which the compiler vectorises where it
// could not vectorise a libm call. Below -87.3 it stays at 1e-38 instead of going to 0. NaN stays NaN.
FB_HOST_DEVICE float exp_nonpositive(float x) {
#if defined(__CUDA_ARCH__)
  return expf(x);
#else
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer held in the low mantissa bits
  x = x < -87.3f ? -87.3f : x;
  const float shifted = x * 1.44269504088896341f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + r + 1.0f;
  unsigned bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3f800000u;  // 2^n
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return y * power;
#endif
}
FB_HOST_DEVICE double exp_nonpositive(double x) { return std::exp(x); }

// The part of `count` >= 1 elements.
template <typename Real>
FB_HOST_DEVICE KldPart<Real> kld_part(const Real* logits, const Real* targets, int count) {
  Real max_q = logits[0], max_p = targets[0];
  FB_SIMD(reduction(max : max_q, max_p))
  for (int i = 0; i < count; ++i) {
    max_q = logits[i] > max_q ? logits[i] : max_q;
    max_p = targets[i] > max_p ? targets[i] : max_p;
  }
  Real sum_q = 0, sum_p = 0, sum_d = 0;
  FB_SIMD(reduction(+ : sum_q, sum_p, sum_d))
  for (int i = 0; i < count; ++i) {
    const Real z = logits[i] - max_q, t = targets[i] - max_p;
    const Real e = exp_nonpositive(t);
    sum_q += exp_nonpositive(z);
    sum_p += e;
    sum_d += e * (t - z);
  }
  return {max_q, sum_q, max_p, sum_p, sum_d};
}

// The same part, its sums taken against maxima at least its own.
template <typename Real>
FB_HOST_DEVICE KldPart<Real> kld_rescale(const KldPart<Real>& part, Real max_q, Real max_p) {
  if (part.sum_q == Real(0)) return {max_q, Real(0), max_p, Real(0), Real(0)};
  const Real z = part.max_q - max_q, t = part.max_p - max_p;
  const Real e = exp_nonpositive(t);
  return {max_q, part.sum_q * exp_nonpositive(z), max_p, part.sum_p * e, (part.sum_d + part.sum_p * (t - z)) * e};
}

template <typename Real>
FB_HOST_DEVICE KldPart<Real> kld_merge(const KldPart<Real>& a, const KldPart<Real>& b) {
  const Real max_q = a.max_q > b.max_q ? a.max_q : b.max_q;
  const Real max_p = a.max_p > b.max_p ? a.max_p : b.max_p;
  const KldPart<Real> x = kld_rescale(a, max_q, max_p), y = kld_rescale(b, max_q, max_p);
  return {max_q, x.sum_q + y.sum_q, max_p, x.sum_p + y.sum_p, x.sum_d + y.sum_d};
}

// A whole row's divergence (0 for a row without elements), and what its gradient needs.
template <typename Real>
FB_HOST_DEVICE Real kld_finish(const KldPart<Real>& part, KldRow<Real>* row) {
  *row = {part.max_q, Real(1) / part.sum_q, part.max_p, Real(1) / part.sum_p};
  if (part.sum_q == Real(0)) return Real(0);
  return part.sum_d / part.sum_p + std::log(part.sum_q / part.sum_p);
}

// gradients = scale (q - p) of `count` elements of a row.
template <typename Real>
FB_HOST_DEVICE void kld_gradient(const Real* logits, const Real* targets, int count, const KldRow<Real>& row,
                                 Real scale, Real* gradients) {
  const Real scale_q = row.scale_q * scale, scale_p = row.scale_p * scale;
  FB_SIMD()
  for (int i = 0; i < count; ++i) {
    gradients[i] = exp_nonpositive(logits[i] - row.max_q) * scale_q - exp_nonpositive(targets[i] - row.max_p) * scale_p;
  }
}

}  // namespace fashionbert
