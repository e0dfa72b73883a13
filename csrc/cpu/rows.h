// What the row-wise operators share on CPU: rows as vectorised loops read and write them, and sums of columns that are
// the same on any number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <type_traits>
#include <vector>

#include "common/macros.h"
#include "common/tensor.h"
#include "cpu/convert.h"

namespace fashionbert {

inline float wide(float value) { return value; }
inline double wide(double value) { return value; }
inline float wide(c10::BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.x) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

// bfloat16 is widened inside a loop, by a shift; float16 before it, because compilers do not vectorise its conversion.
template <typename Storage>
using loop_t = std::conditional_t<std::is_same_v<Storage, c10::Half>, float, Storage>;

// `count` numbers at `in` for a loop to read: where they lie, or float16 widened into `buffer`.
template <typename Storage, typename Real>
const loop_t<Storage>* readable(const Storage* in, int64_t count, Real* buffer) {
  if constexpr (std::is_same_v<Storage, c10::Half>) {
    widen(in, static_cast<int>(count), buffer);
    return buffer;
  } else {
    return in;
  }
}

template <typename Storage>
inline constexpr bool kBuffered = std::is_same_v<Storage, c10::Half>;

inline void put(float value, float* to) { *to = value; }
inline void put(double value, double* to) { *to = value; }
// Rounds to nearest even, as torch does; NaN stays NaN.
inline void put(float value, c10::BFloat16* to) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to->x = static_cast<uint16_t>(value != value ? 0x7fc0u : rounded);
}

// Where a loop writes numbers meant for `out`: there, or float16 as float into `buffer`, which `written` then rounds.
template <typename Storage, typename Real>
loop_t<Storage>* writable(Storage* out, Real* buffer) {
  if constexpr (kBuffered<Storage>) {
    return buffer;
  } else {
    return out;
  }
}

template <typename Storage>
void written(const loop_t<Storage>* from, int64_t count, Storage* out) {
  if constexpr (kBuffered<Storage>) narrow(from, static_cast<int>(count), out);
}

// All of `count` parameters in the type arithmetic is done in; zeros where there are none.
template <typename Storage>
std::vector<compute_t<Storage>> widened_parameters(const Tensor* tensor, int64_t count) {
  std::vector<compute_t<Storage>> values(count);
  const auto* in = tensor ? static_cast<const Storage*>(tensor->const_data_ptr()) : nullptr;
  for (int64_t i = 0; in && i < count; ++i) values[i] = static_cast<compute_t<Storage>>(in[i]);
  return values;
}

constexpr int64_t kSumRows = 32;  // a block: its sums cost a thirtieth of its rows' traffic

// Sums over rows of `width` columns: each block of rows has its own, added up block by block afterwards.
template <typename Real>
class ColumnSums {
 public:
  ColumnSums(int64_t rows, int64_t width)
      : blocks_((rows + kSumRows - 1) / kSumRows), width_(width), sums_(new Real[blocks_ * width]) {}

  int64_t blocks() const { return blocks_; }

  Real* zeroed(int64_t block) {
    Real* sums = sums_.get() + block * width_;
    std::fill_n(sums, width_, Real(0));
    return sums;
  }

  // The totals of `count` columns from `first` on.
  template <typename Storage>
  void total(int64_t first, int64_t count, Storage* out) const {
    constexpr int64_t kColumns = 128;
    torch::stable::parallel_for(0, (count + kColumns - 1) / kColumns, 2, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        const int64_t from = chunk * kColumns, columns = std::min(kColumns, count - from);
        Real totals[kColumns] = {};
        for (int64_t block = 0; block < blocks_; ++block) {
          const Real* sums = sums_.get() + block * width_ + first + from;
          FB_SIMD()
          for (int64_t i = 0; i < columns; ++i) totals[i] += sums[i];
        }
        for (int64_t i = 0; i < columns; ++i) out[from + i] = static_cast<Storage>(totals[i]);
      }
    });
  }

 private:
  int64_t blocks_, width_;
  std::unique_ptr<Real[]> sums_;
};

// Calls body(block, first row, last row) for each block of kSumRows rows.
template <typename Body>
void for_row_blocks(int64_t rows, int64_t begin, int64_t end, Body&& body) {
  for (int64_t block = begin; block < end; ++block)
    body(block, block * kSumRows, std::min(rows, (block + 1) * kSumRows));
}

inline std::optional<Tensor> contiguous(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional<Tensor>(torch::stable::contiguous(*tensor)) : std::nullopt;
}

inline const Tensor* pointer(const std::optional<Tensor>& tensor) { return tensor ? &*tensor : nullptr; }

}  // namespace fashionbert
