// Exponentials that vectorise on the host, host and device.
#pragma once

#include <cmath>
#include <cstring>

#include "common/macros.h"

namespace fashionbert {

// e^x for x <= 0, a branch-free polynomial (Cephes' expf, 1 ulp). Below -87.3 it stays at 1e-38 instead of going to 0.
// NaN stays NaN. Real: float, or a vector of them, Bits their bits.
template <typename Bits, typename Real>
inline Real exp_polynomial(Real x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer held in the low mantissa bits
  const Real least = Real{} - 87.3f;
  x = x < least ? least : x;
  const Real shifted = x * 1.44269504088896341f + kRound;
  const Real n = shifted - kRound;
  const Real r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Real y = r * 1.9875691500e-4f + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + r + 1.0f;
  Bits bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3f800000u;  // 2^n
  Real power;
  std::memcpy(&power, &bits, sizeof power);
  return y * power;
}

// The same; on the host the compiler vectorises it where it could not vectorise a libm call.
FB_HOST_DEVICE float exp_nonpositive(float x) {
#if defined(__CUDA_ARCH__)
  return expf(x);
#else
  return exp_polynomial<unsigned>(x);
#endif
}
FB_HOST_DEVICE double exp_nonpositive(double x) { return std::exp(x); }

}  // namespace fashionbert
