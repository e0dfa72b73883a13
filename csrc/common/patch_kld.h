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
#include <limits>

#include "common/exp.h"
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

// Elements summed at once: of nearly flat rows the two terms of the divergence all but cancel, and what one long sum
// with 8 lanes loses shows (errors 5 times plain PyTorch's at 1024 terms).
constexpr int kLongestKldSum = 256;

struct KeepNothing {
  template <typename Real>
  FB_HOST_DEVICE void operator()(int, Real, Real) const {}
};

// The part of `count` >= 1 elements. keep(i, q, p) is given the exponentials of element i, against the part's maxima.
template <typename Real, typename Keep = KeepNothing>
FB_HOST_DEVICE KldPart<Real> kld_part(const Real* logits, const Real* targets, int count, Keep keep = {}) {
  Real max_q = logits[0], max_p = targets[0];
  FB_SIMD(reduction(max : max_q, max_p))
  for (int i = 0; i < count; ++i) {
    max_q = logits[i] > max_q ? logits[i] : max_q;
    max_p = targets[i] > max_p ? targets[i] : max_p;
  }
  KldPart<Real> part{max_q, Real(0), max_p, Real(0), Real(0)};
  for (int first = 0; first < count; first += kLongestKldSum) {
    const int last = count - first < kLongestKldSum ? count : first + kLongestKldSum;
    Real sum_q = 0, sum_p = 0, sum_d = 0;
    FB_SIMD(reduction(+ : sum_q, sum_p, sum_d))
    for (int i = first; i < last; ++i) {
      const Real z = logits[i] - max_q, t = targets[i] - max_p;
      const Real q = exp_nonpositive(z), p = exp_nonpositive(t);
      keep(i, q, p);
      sum_q += q;
      sum_p += p;
      sum_d += p * (t - z);
    }
    part.sum_q += sum_q;
    part.sum_p += sum_p;
    part.sum_d += sum_d;
  }
  return part;
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
