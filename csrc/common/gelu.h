// The exact GELU, u Phi(u) with Phi the normal distribution, and its derivative Phi(u) + u phi(u); host and device.
//
// With t = |u| both are made of Phi(-t) and phi(t), which share e^(-t^2 / 2):
//
//   gelu(u) = max(u, 0) - t Phi(-t),   gelu'(u) = d where u < 0, else 1 - d,   d = Phi(-t) - t phi(t)
//
// which unlike u (1 + erf(u / sqrt(2))) / 2 loses nothing in the left tail. On the host Phi(-t) = e^(-t^2 / 2) R(t)
// with R(t) = 1/2 - t P(v) / (t + 3.5) and v = (t - 3.5) / (t + 3.5), P a minimax polynomial (Remez; relative
// error 2.5e-8 for t <= 14): exact at 0, no branch, one division, one exponential, so that the compiler vectorises it.
#pragma once

#include <cmath>
#include <cstring>

#include "common/macros.h"

namespace fashionbert {

template <typename Real>
struct NormalTail {
  Real t;        // |u|, but at most where the next two are as good as 0: this keeps 0 x infinity out
  Real tail;     // Phi(-t)
  Real density;  // phi(t)
};

// min(|u|, 12.8), by bits: gcc makes branches of a comparison with a constant unless the target has masks. NaN
// gives 12.8.
FB_HOST_DEVICE float bounded_size(float u) {
#if defined(__CUDA_ARCH__)
  return fminf(fabsf(u), 12.8f);
#else
  int bits;
  std::memcpy(&bits, &u, sizeof bits);
  bits &= 0x7fffffff;
  bits = bits < 0x414ccccd ? bits : 0x414ccccd;
  std::memcpy(&u, &bits, sizeof bits);
  return u;
#endif
}

// e^(-t^2 / 2) for 0 <= t <= 12.8. On the host 2^n 2^f with n an integer and |f| <= 1/2, 2^f a polynomial (relative
// error 2e-9) that is exact at 0; t^2 never gets rounded on its way into f where there is a fused multiply-add.
FB_HOST_DEVICE float exp_minus_half_square(float t) {
#if defined(__CUDA_ARCH__)
  return expf(-0.5f * (t * t));
#else
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer held in the low mantissa bits
  constexpr float kHalfLog2E = -0.72134752044f;
  const float square = t * t, shifted = square * kHalfLog2E + kRound, n = shifted - kRound, f = square * kHalfLog2E - n;
  float y = 1.5353257870e-4f;
  y = y * f + 1.3399003461e-3f;
  y = y * f + 9.6184386015e-3f;
  y = y * f + 5.5503321629e-2f;
  y = y * f + 2.4022647897e-1f;
  y = y * f + 6.9314720298e-1f;
  y = y * f + 1.0f;
  unsigned bits, exponent;
  std::memcpy(&exponent, &shifted, sizeof exponent);
  std::memcpy(&bits, &y, sizeof bits);
  bits += exponent << 23;
  std::memcpy(&y, &bits, sizeof y);
  return y;
#endif
}

FB_HOST_DEVICE NormalTail<float> normal_tail(float u) {
  const float t = bounded_size(u);  // at 12.8 t Phi(-t) is 1e-36, and nothing is subnormal yet
  const float e = exp_minus_half_square(t);
#if defined(__CUDA_ARCH__)
  const float tail = 0.5f * erfcf(0.707106781186547524f * t);
#else
  const float q = 1.0f / (t + 3.5f), v = 1.0f - 7.0f * q;
  float p = -3.1152568587e-4f;
  p = p * v - 3.9759946344e-4f;
  p = p * v + 3.2139864517e-3f;
  p = p * v - 1.0471029931e-4f;
  p = p * v - 3.8041743963e-2f;
  p = p * v + 1.6132110944e-1f;
  p = p * v - 4.1303025947e-1f;
  p = p * v + 7.8730967346e-1f;
  const float tail = e * (0.5f - (t * q) * p);
#endif
  return {t, tail, 0.398942280401432678f * e};
}

FB_HOST_DEVICE NormalTail<double> normal_tail(double u) {
  const double t = std::fmin(std::fabs(u), 40.0);
  return {t, 0.5 * std::erfc(0.70710678118654752440 * t), 0.39894228040143267794 * std::exp(-0.5 * t * t)};
}

// NaN stays NaN, and minus infinity gives NaN as in PyTorch.
template <typename Real>
FB_HOST_DEVICE Real gelu(Real u) {
  const NormalTail<Real> normal = normal_tail(u);
  return Real(0.5) * u + Real(0.5) * std::fabs(u) - normal.t * normal.tail;
}

// NaN and infinity give NaN as in PyTorch.
template <typename Real>
FB_HOST_DEVICE Real gelu_derivative(Real u) {
  const NormalTail<Real> normal = normal_tail(u);
  const Real d = normal.tail - normal.t * normal.density;
  return ((u > 0 ? Real(1) : Real(0)) + (u > 0 ? Real(-1) : Real(1)) * d) + (u - u);
}

}  // namespace fashionbert
