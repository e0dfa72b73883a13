// Products of small matrices that stay in the cache, by register-blocked tiles.
//
// A product sums over words. A word is one number, or, where the processor multiplies bfloat16 natively, two of them
// that are neighbours along the summed dimension (vdpbf16ps). The left operand is read a word at a time with any
// strides; the right one, a (words, columns) matrix, a vector at a time. Widths are padded: see `padded`.
#pragma once

#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "common/macros.h"
#include "common/tensor.h"
#include "cpu/vectors.h"

namespace fashionbert {

constexpr int kTileRows = 6;
#if defined(__AVX512F__)
constexpr int kTileVectors =
    4;  // 6 x 4 sums, 4 vectors of the right operand and a word of the left: 29 of 32 registers
#else
constexpr int kTileVectors = 2;  // 6 x 2 sums, 2 vectors and a word: 15 of 16 registers
#endif

// How numbers of a storage type are multiplied: as Element, kPack to a Word, sums being vectors of Real.
template <typename Storage>
struct Operand {
  using Real = compute_t<Storage>;
  using Element = Real;
  using Word = Real;
  static constexpr int kPack = 1;
  static constexpr int kLanes = kLanesOf<Real>;

  static vector_t<Real> multiply_add(vector_t<Real> sum, Word a, vector_t<Word> b) { return sum + a * b; }
};
#if defined(__AVX512BF16__)
template <>
struct Operand<c10::BFloat16> {
  using Real = float;
  using Element = c10::BFloat16;
  using Word = uint32_t;
  static constexpr int kPack = 2;
  static constexpr int kLanes = 16;

  static vector_t<float> multiply_add(vector_t<float> sum, uint32_t a, vector_t<uint32_t> b) {
    return (vector_t<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(static_cast<int>(a)),
                                             (__m512bh)b);
  }
};
#endif

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// A width in elements, rounded up so that both its elements and its words fill vectors; what is added counts as zeros.
template <typename Storage>
int64_t padded(int64_t width) {
  return round_up(width, Operand<Storage>::kLanes * Operand<Storage>::kPack);
}

// Uninitialised memory that vectors may be read from, until the end of its owner.
class Scratch {
 public:
  Scratch() = default;
  ~Scratch() {
    for (void* block : blocks_) ::operator delete(block, kAlignment);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <typename T>
  T* take(int64_t count) {
    blocks_.push_back(::operator new(count * sizeof(T), kAlignment));
    return static_cast<T*>(blocks_.back());
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  std::vector<void*> blocks_;
};

// Word k of row r is at data[r * row + k * word].
template <typename Word>
struct Left {
  const Word* data;
  int64_t row, word;
};

template <typename Storage, int kRows, int kVectors>
void multiply_tile(Left<typename Operand<Storage>::Word> a, const typename Operand<Storage>::Word* b, int64_t b_row,
                   int64_t words, typename Operand<Storage>::Real* c, int64_t c_row, bool accumulate) {
  using Ops = Operand<Storage>;
  using Sums = vector_t<typename Ops::Real>;
  Sums sums[kRows][kVectors] = {};
  if (accumulate) {
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVectors; ++v) std::memcpy(&sums[r][v], c + r * c_row + v * Ops::kLanes, sizeof(Sums));
  }
  for (int64_t k = 0; k < words; ++k) {
    vector_t<typename Ops::Word> right[kVectors];
    FB_UNROLL for (int v = 0; v < kVectors; ++v)
      std::memcpy(&right[v], b + k * b_row + v * Ops::kLanes, sizeof(right[v]));
    FB_UNROLL for (int r = 0; r < kRows; ++r) {
      const typename Ops::Word left = a.data[r * a.row + k * a.word];
      FB_UNROLL for (int v = 0; v < kVectors; ++v)
        sums[r][v] = Ops::multiply_add(sums[r][v], left, right[v]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) std::memcpy(c + r * c_row + v * Ops::kLanes, &sums[r][v], sizeof(Sums));
}

// Rows of the next tile when an even number is left: 6, and no tile of 2 where two of 4 do.
inline int tile_rows(int64_t left) { return left >= kTileRows && left != 8 ? kTileRows : left >= 4 ? 4 : 2; }

template <typename Storage, int kVectors>
void multiply_strip(int64_t rows, Left<typename Operand<Storage>::Word> a, const typename Operand<Storage>::Word* b,
                    int64_t b_row, int64_t words, typename Operand<Storage>::Real* c, int64_t c_row, bool accumulate) {
  for (int64_t r = 0; r < rows;) {
    const Left<typename Operand<Storage>::Word> from{a.data + r * a.row, a.row, a.word};
    const int count = tile_rows(rows - r);
    const auto tile = count == 6   ? multiply_tile<Storage, 6, kVectors>
                      : count == 4 ? multiply_tile<Storage, 4, kVectors>
                                   : multiply_tile<Storage, 2, kVectors>;
    tile(from, b, b_row, words, c + r * c_row, c_row, accumulate);
    r += count;
  }
}

// c (+)= a b for an even number of rows and a padded number of columns.
template <typename Storage>
void multiply(int64_t rows, int64_t columns, int64_t words, Left<typename Operand<Storage>::Word> a,
              const typename Operand<Storage>::Word* b, int64_t b_row, typename Operand<Storage>::Real* c,
              int64_t c_row, bool accumulate) {
  constexpr int64_t kLanes = Operand<Storage>::kLanes;
  int64_t vectors = columns / kLanes;
  while (vectors > 0) {
    // As even a split as there is: 5 vectors are 3 and 2, for a tile of one vector waits for its own sums.
    const int64_t strips = (vectors + kTileVectors - 1) / kTileVectors;
    const int64_t width = (vectors + strips - 1) / strips;
    auto strip = multiply_strip<Storage, 1>;
    if (width == 2) strip = multiply_strip<Storage, 2>;
    if constexpr (kTileVectors >= 4) {
      if (width == 3) strip = multiply_strip<Storage, 3>;
      if (width == 4) strip = multiply_strip<Storage, 4>;
    }
    strip(rows, a, b, b_row, words, c, c_row, accumulate);
    b += width * kLanes;
    c += width * kLanes;
    vectors -= width;
  }
}

// Packing -------------------------------------------------------------------------------------------------------------

#if defined(__AVX512F__)
// out[c][r] = in[r][c] of a 16 x 16 block of 32-bit words.
inline void transpose_block(const void* in, int64_t in_row, void* out, int64_t out_row) {
  const auto* from = static_cast<const uint32_t*>(in);
  auto* to = static_cast<uint32_t*>(out);
  __m512i a[16], b[16];
  FB_UNROLL for (int r = 0; r < 16; ++r)
    a[r] = _mm512_loadu_si512(from + r * in_row);
  FB_UNROLL for (int r = 0; r < 16; r += 2) {
    b[r] = _mm512_unpacklo_epi32(a[r], a[r + 1]);
    b[r + 1] = _mm512_unpackhi_epi32(a[r], a[r + 1]);
  }
  FB_UNROLL for (int r = 0; r < 16; r += 4) {  // a[r + i] holds, in its quarter q, column 4 q + i of rows r .. r + 3
    a[r] = _mm512_unpacklo_epi64(b[r], b[r + 2]);
    a[r + 1] = _mm512_unpackhi_epi64(b[r], b[r + 2]);
    a[r + 2] = _mm512_unpacklo_epi64(b[r + 1], b[r + 3]);
    a[r + 3] = _mm512_unpackhi_epi64(b[r + 1], b[r + 3]);
  }
  FB_UNROLL for (int i = 0; i < 4; ++i) {
    const __m512i even_low = _mm512_shuffle_i32x4(a[i], a[4 + i], 0x88),
                  odd_low = _mm512_shuffle_i32x4(a[i], a[4 + i], 0xdd);
    const __m512i even_high = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0x88);
    const __m512i odd_high = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0xdd);
    _mm512_storeu_si512(to + i * out_row, _mm512_shuffle_i32x4(even_low, even_high, 0x88));
    _mm512_storeu_si512(to + (4 + i) * out_row, _mm512_shuffle_i32x4(odd_low, odd_high, 0x88));
    _mm512_storeu_si512(to + (8 + i) * out_row, _mm512_shuffle_i32x4(even_low, even_high, 0xdd));
    _mm512_storeu_si512(to + (12 + i) * out_row, _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd));
  }
}
#endif

// out[w][r] = in[r][w]: a right operand that sums over the columns of `in`. Both counts fill vectors.
template <typename Word>
void transpose(const Word* in, int64_t rows, int64_t words, int64_t in_row, Word* out, int64_t out_row) {
#if defined(__AVX512F__)
  if constexpr (sizeof(Word) == 4) {
    for (int64_t r = 0; r < rows; r += 16)
      for (int64_t w = 0; w < words; w += 16)
        transpose_block(in + r * in_row + w, in_row, out + w * out_row + r, out_row);
    return;
  }
#endif
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t w = 0; w < words; ++w) out[w * out_row + r] = in[r * in_row + w];
}

// One row of words that hold a row of numbers and the next one: a right operand (or a left one) that sums over rows.
inline void pair_rows(const c10::BFloat16* first, const c10::BFloat16* second, int64_t width, uint32_t* out) {
  FB_SIMD()
  for (int64_t i = 0; i < width; ++i) {
    out[i] = static_cast<uint32_t>(first[i].x) | static_cast<uint32_t>(second[i].x) << 16;
  }
}

// A vector of each of two neighbouring rows: as words that sum over rows, and, where those are pairs, as two rows.
template <typename Storage>
void store_pair(vector_t<typename Operand<Storage>::Real> first, vector_t<typename Operand<Storage>::Real> second,
                int64_t row_size, typename Operand<Storage>::Word* pairs, typename Operand<Storage>::Element* rows) {
  if constexpr (Operand<Storage>::kPack == 1) {
    store_vector(first, pairs);
    store_vector(second, pairs + row_size);
  } else {
#if defined(__AVX512BF16__)
    alignas(64) static constexpr uint16_t kInterleave[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                             21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                             11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const auto both = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    _mm512_storeu_si512(pairs, _mm512_permutexvar_epi16(_mm512_load_si512(kInterleave), both));
    if (rows == nullptr) return;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(rows), _mm512_castsi512_si256(both));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(rows + row_size), _mm512_extracti64x4_epi64(both, 1));
#endif
  }
}

}  // namespace fashionbert
