// Vectors of the width this processor has: loads and stores that convert, and what loops over rows need of them.
#pragma once

#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // of the compiler's own AVX-512 header (GCC bug 105593)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

#include "common/exp.h"
#include "common/macros.h"
#include "common/tensor.h"

namespace fashionbert {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#else
constexpr int kVectorBytes = 32;
#endif

template <typename Real>
struct VectorOf {
  typedef Real type __attribute__((vector_size(kVectorBytes)));
};
template <typename Real>
using vector_t = typename VectorOf<Real>::type;
template <typename Real>
constexpr int kLanesOf = kVectorBytes / sizeof(Real);
typedef uint16_t half_vector_t __attribute__((vector_size(kVectorBytes / 2)));

inline vector_t<double> load_vector(const double* from) {
  vector_t<double> result;
  std::memcpy(&result, from, sizeof result);
  return result;
}
inline vector_t<float> load_vector(const float* from) {
  vector_t<float> result;
  std::memcpy(&result, from, sizeof result);
  return result;
}
inline vector_t<float> load_vector(const c10::BFloat16* from) {
  half_vector_t halves;
  std::memcpy(&halves, from, sizeof halves);
  return (vector_t<float>)(__builtin_convertvector(halves, vector_t<uint32_t>) << 16);
}
inline vector_t<float> load_vector(const c10::Half* from) {
#if defined(__AVX512F__)
  return (vector_t<float>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__F16C__)
  return (vector_t<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
  vector_t<float> result;
  for (int lane = 0; lane < kLanesOf<float>; ++lane) result[lane] = static_cast<float>(from[lane]);
  return result;
#endif
}

inline void store_vector(vector_t<double> value, double* to) { std::memcpy(to, &value, sizeof value); }
inline void store_vector(vector_t<float> value, float* to) { std::memcpy(to, &value, sizeof value); }
// Rounds to nearest even; NaN stays NaN. The native instruction takes numbers below 1.2e-38 for zeros.
inline void store_vector(vector_t<float> value, c10::BFloat16* to) {
#if defined(__AVX512BF16__)
  const __m256bh halves = _mm512_cvtneps_pbh((__m512)value);
#else
  const auto bits = (vector_t<uint32_t>)value;
  const vector_t<uint32_t> rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const auto nan = (vector_t<uint32_t>)(value != value);
  const auto halves = __builtin_convertvector((nan & 0x7fc0u) | (~nan & rounded), half_vector_t);
#endif
  std::memcpy(static_cast<void*>(to), &halves, sizeof halves);
}
inline void store_vector(vector_t<float> value, c10::Half* to) {
#if defined(__AVX512F__)
  const __m256i halves = _mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  std::memcpy(static_cast<void*>(to), &halves, sizeof halves);
#elif defined(__F16C__)
  const __m128i halves = _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  std::memcpy(static_cast<void*>(to), &halves, sizeof halves);
#else
  for (int lane = 0; lane < kLanesOf<float>; ++lane) to[lane] = static_cast<c10::Half>(value[lane]);
#endif
}

// The same of the `count` first lanes, which may be none or more than all; zeros in the rest.
template <typename Storage>
auto load_lanes(const Storage* from, int64_t count) {
  constexpr int64_t kLanes = kLanesOf<compute_t<Storage>>;
  if (count >= kLanes) return load_vector(from);
  Storage part[kLanes] = {};
  if (count > 0) std::memcpy(static_cast<void*>(part), from, count * sizeof(Storage));
  return load_vector(part);
}
template <typename Storage>
void store_lanes(vector_t<compute_t<Storage>> value, Storage* to, int64_t count) {
  constexpr int64_t kLanes = kLanesOf<compute_t<Storage>>;
  if (count >= kLanes) return store_vector(value, to);
  Storage part[kLanes];
  store_vector(value, part);
  if (count > 0) std::memcpy(static_cast<void*>(to), part, count * sizeof(Storage));
}

// `value` in the `count` first lanes, `other` in the rest.
template <typename Real>
vector_t<Real> first_lanes(vector_t<Real> value, int64_t count, Real other) {
  vector_t<Real> lanes;
  for (int lane = 0; lane < kLanesOf<Real>; ++lane) lanes[lane] = static_cast<Real>(lane);
  return lanes < static_cast<Real>(count) ? value : vector_t<Real>{} + other;
}

template <typename Real>
Real sum_lanes(vector_t<Real> value) {
#if defined(__AVX512F__)
  if constexpr (sizeof(Real) == 4) return _mm512_reduce_add_ps((__m512)value);
#endif
  Real sum = 0;
  for (int lane = 0; lane < kLanesOf<Real>; ++lane) sum += value[lane];
  return sum;
}

template <typename Real>
vector_t<Real> larger(vector_t<Real> a, vector_t<Real> b) {
  return a > b ? a : b;
}

template <typename Real>
Real largest_lane(vector_t<Real> value) {
#if defined(__AVX512F__)
  if constexpr (sizeof(Real) == 4) return _mm512_reduce_max_ps((__m512)value);
#endif
  Real result = value[0];
  for (int lane = 1; lane < kLanesOf<Real>; ++lane) result = value[lane] > result ? value[lane] : result;
  return result;
}

inline vector_t<float> exp_nonpositive(vector_t<float> x) { return exp_polynomial<vector_t<uint32_t>>(x); }
inline vector_t<double> exp_nonpositive(vector_t<double> x) {
  for (int lane = 0; lane < kLanesOf<double>; ++lane) x[lane] = std::exp(x[lane]);
  return x;
}

}  // namespace fashionbert
