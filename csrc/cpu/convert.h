// Stretches of stored numbers to and from the type they are computed in, in loops that vectorise.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "common/macros.h"
#include "common/tensor.h"

namespace fashionbert {

inline void widen(const c10::BFloat16* in, int count, float* out) {
  FB_SIMD()
  for (int i = 0; i < count; ++i) {
    const uint32_t bits = static_cast<uint32_t>(in[i].x) << 16;
    std::memcpy(&out[i], &bits, sizeof bits);
  }
}

// Rounds to nearest even, as torch does; NaN stays NaN.
inline void narrow(const float* in, int count, c10::BFloat16* out) {
  FB_SIMD()
  for (int i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, &in[i], sizeof bits);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    out[i].x = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
  }
}

// float16: compilers do not vectorise the conversion without AVX512-FP16, hence the intrinsics.
inline void widen(const c10::Half* in, int count, float* out) {
  int i = 0;
#if defined(__F16C__)
  for (; i + 8 <= count; i += 8) {
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i))));
  }
#endif
  for (; i < count; ++i) out[i] = static_cast<float>(in[i]);
}

inline void narrow(const float* in, int count, c10::Half* out) {
  int i = 0;
#if defined(__F16C__)
  for (; i + 8 <= count; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), halves);
  }
#endif
  for (; i < count; ++i) out[i] = static_cast<c10::Half>(in[i]);
}

// Asks for `bytes` at `data` ahead of time: rows gathered from anywhere in a matrix are what no processor foresees.
inline void prefetch(const void* data, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(data) + i);
}

// `count` numbers at `in` as Real: in place where they are that already, else widened into `buffer`.
template <typename Real, typename Storage>
const Real* widened(const Storage* in, int count, Real* buffer) {
  if constexpr (std::is_same_v<Real, Storage>) {
    return in;
  } else {
    widen(in, count, buffer);
    return buffer;
  }
}

}  // namespace fashionbert
