// Exponentials that vectorise on the host, host and device.
#pragma once

#include <cmath>
#include <cstring>

#include "common/macros.h"

namespace fashionbert {

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

}  // namespace fashionbert
