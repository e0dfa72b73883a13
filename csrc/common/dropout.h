// Dropout whose mask is a function of (seed, site, plane, row, column): the backward draws it again, nothing stores
// it.
//
// Philox4x32 (Salmon et al. 2011) with 7 rounds, their fewest that pass BigCrush; the key is the step's seed. A call
// gives 8 draws of 16 bits, so a probability is honoured to 1 / 65536. Columns are laid out for vectors: a block of 128
// columns takes 16 calls, and column 16 j + i of the block is draw j of call i. kernels/dropout.py has the same in
// Python (the reference) and in Triton.
#pragma once

#include <cstdint>

#if defined(__AVX512F__) && !defined(__CUDACC__)
#include <immintrin.h>
#endif

#include "common/macros.h"

namespace fashionbert {

constexpr int kDropoutCalls = 16;  // a block
constexpr int kDropoutDraws = 8;   // a call
constexpr int kDropoutBlock = kDropoutCalls * kDropoutDraws;
constexpr int kPhiloxRounds = 7;

struct Dropout {
  uint64_t seed = 0;
  uint32_t site = 0;       // the place in the model that drops
  uint32_t threshold = 0;  // draws below it drop; 0: no dropout
  float scale = 1;         // of what is kept

  FB_HOST_DEVICE bool active() const { return threshold > 0; }
};

// `probability` in [0, 1] of dropping; the scale is that of the probability as rounded.
FB_HOST_DEVICE Dropout make_dropout(uint64_t seed, uint32_t site, double probability) {
  Dropout dropout;
  dropout.seed = seed;
  dropout.site = site;
  dropout.threshold = static_cast<uint32_t>(probability * 65536 + 0.5);
  dropout.scale = dropout.threshold < 65536 ? 65536.0f / static_cast<float>(65536 - dropout.threshold) : 0.0f;
  return dropout;
}

struct PhiloxKey {
  uint32_t k0, k1;

  FB_HOST_DEVICE explicit PhiloxKey(uint64_t seed)
      : k0(static_cast<uint32_t>(seed)), k1(static_cast<uint32_t>(seed >> 32)) {}
  FB_HOST_DEVICE void next() {
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
};

FB_HOST_DEVICE void philox_round(const PhiloxKey& key, uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3) {
  const uint64_t a = static_cast<uint64_t>(0xD2511F53u) * c0, b = static_cast<uint64_t>(0xCD9E8D57u) * c2;
  c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ key.k0;
  c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ key.k1;
  c1 = static_cast<uint32_t>(b);
  c3 = static_cast<uint32_t>(a);
}

#if !defined(__CUDACC__)
#if defined(__AVX512F__)
// A round of 16 calls at once; the compiler makes several times as many instructions of `philox_round`.
inline void philox_round(const PhiloxKey& key, __m512i& c0, __m512i& c1, __m512i& c2, __m512i& c3) {
  const auto high_of = [](__m512i x, __m512i by) {
    const __m512i even = _mm512_mul_epu32(x, by), odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), by);
    return _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
  };
  const __m512i by_a = _mm512_set1_epi32(static_cast<int>(0xD2511F53u));
  const __m512i by_b = _mm512_set1_epi32(static_cast<int>(0xCD9E8D57u));
  const __m512i high_a = high_of(c0, by_a), high_b = high_of(c2, by_b);
  const __m512i low_a = _mm512_mullo_epi32(c0, by_a), low_b = _mm512_mullo_epi32(c2, by_b);
  c0 = _mm512_xor_si512(_mm512_xor_si512(high_b, c1), _mm512_set1_epi32(static_cast<int>(key.k0)));
  c2 = _mm512_xor_si512(_mm512_xor_si512(high_a, c3), _mm512_set1_epi32(static_cast<int>(key.k1)));
  c1 = low_b;
  c3 = low_a;
}

// What block `block` of a row multiplies by: scale or 0, for each of its 128 columns.
inline void dropout_factors(const Dropout& dropout, uint32_t plane, uint32_t row, uint32_t block, float* factors) {
  const __m512i calls = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  __m512i c0 = _mm512_add_epi32(calls, _mm512_set1_epi32(static_cast<int>(block * kDropoutCalls)));
  __m512i c1 = _mm512_set1_epi32(static_cast<int>(row)), c2 = _mm512_set1_epi32(static_cast<int>(dropout.site));
  __m512i c3 = _mm512_set1_epi32(static_cast<int>(plane));
  PhiloxKey key(dropout.seed);
  FB_UNROLL for (int round = 0; round < kPhiloxRounds; ++round, key.next())
    philox_round(key, c0, c1, c2, c3);
  const __m512i threshold = _mm512_set1_epi32(static_cast<int>(dropout.threshold));
  const __m512 scale = _mm512_set1_ps(dropout.scale);
  const __m512i words[4] = {c0, c1, c2, c3};
  FB_UNROLL for (int word = 0; word < 4; ++word) {
    const __m512i low = _mm512_and_si512(words[word], _mm512_set1_epi32(0xffff));
    const __m512i high = _mm512_srli_epi32(words[word], 16);
    float* to = factors + 2 * word * kDropoutCalls;
    _mm512_storeu_ps(to, _mm512_maskz_mov_ps(_mm512_cmpge_epu32_mask(low, threshold), scale));
    _mm512_storeu_ps(to + kDropoutCalls, _mm512_maskz_mov_ps(_mm512_cmpge_epu32_mask(high, threshold), scale));
  }
}
#else
// What block `block` of a row multiplies by: scale or 0, for each of its 128 columns. `philox` for 16 calls at once,
// its rounds outside and the calls inside, which is the order the compiler vectorises.
inline void dropout_factors(const Dropout& dropout, uint32_t plane, uint32_t row, uint32_t block, float* factors) {
  alignas(64) uint32_t c0[kDropoutCalls], c1[kDropoutCalls], c2[kDropoutCalls], c3[kDropoutCalls];
  FB_SIMD()
  for (uint32_t call = 0; call < kDropoutCalls; ++call) {
    c0[call] = block * kDropoutCalls + call;
    c1[call] = row;
    c2[call] = dropout.site;
    c3[call] = plane;
  }
  PhiloxKey key(dropout.seed);
  for (int round = 0; round < kPhiloxRounds; ++round, key.next()) {
    FB_SIMD()
    for (int call = 0; call < kDropoutCalls; ++call) philox_round(key, c0[call], c1[call], c2[call], c3[call]);
  }
  const uint32_t* words[4] = {c0, c1, c2, c3};
  const uint32_t threshold = dropout.threshold;  // copies: `factors` could point at dropout, for all the compiler knows
  const float scale = dropout.scale;
  for (int word = 0; word < 4; ++word) {
    FB_SIMD()
    for (int call = 0; call < kDropoutCalls; ++call) {
      const uint32_t low = words[word][call] & 0xffffu, high = words[word][call] >> 16;
      factors[2 * word * kDropoutCalls + call] = low >= threshold ? scale : 0.0f;
      factors[(2 * word + 1) * kDropoutCalls + call] = high >= threshold ? scale : 0.0f;
    }
  }
}
#endif

// values[i] *= factor of column i, for the `count` first columns of a row. NaN where dropped becomes 0 as well.
template <typename Real>
void apply_dropout(const Dropout& dropout, uint32_t plane, uint32_t row, int64_t count, Real* values) {
  if (!dropout.active()) return;
  alignas(64) float factors[kDropoutBlock];
  for (int64_t first = 0; first < count; first += kDropoutBlock) {
    dropout_factors(dropout, plane, row, static_cast<uint32_t>(first / kDropoutBlock), factors);
    const int width = static_cast<int>(count - first < kDropoutBlock ? count - first : kDropoutBlock);
    Real* to = values + first;
    FB_SIMD()
    for (int i = 0; i < width; ++i) to[i] = factors[i] != 0 ? to[i] * static_cast<Real>(factors[i]) : Real(0);
  }
}
#endif

}  // namespace fashionbert
