// Patch features as the projection wants them: rows gathered from the images, dequantised and dropped on the way, in
// the type its matrix product takes.
#pragma once

#include <torch/headeronly/util/Float8_e4m3fn.h>
#include <torch/headeronly/util/Float8_e5m2.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>

#include "common/dropout.h"
#include "cpu/convert.h"

namespace fashionbert {

// Row b P + p is patch p of pair b: that of image image_index[b], or b. `scale`: a factor a row of the images, or null.
struct FeatureRows {
  const void* data;
  int64_t image_stride, patch_stride;  // in elements
  const int64_t* image_index;
  const float* scale;
  int64_t patches, width;
  Dropout dropout;

  int64_t image(int64_t row) const { return image_index ? image_index[row / patches] : row / patches; }
  float scale_of(int64_t row) const { return scale ? scale[image(row) * patches + row % patches] : 1.0f; }
  template <typename Feature>
  const Feature* at(int64_t row) const {
    return static_cast<const Feature*>(data) + image(row) * image_stride + row % patches * patch_stride;
  }
};

inline void widen(const int8_t* in, int count, float* out) {
  FB_SIMD()
  for (int i = 0; i < count; ++i) out[i] = static_cast<float>(in[i]);
}

// Eight bits have 256 values: looked up.
template <typename Float8>
void widen_float8(const Float8* in, int count, float* out) {
  static const std::array<float, 256> kValues = [] {
    std::array<float, 256> values;
    for (int bits = 0; bits < 256; ++bits) values[bits] = Float8(static_cast<uint8_t>(bits), Float8::from_bits());
    return values;
  }();
  const float* values = kValues.data();
  FB_SIMD()
  for (int i = 0; i < count; ++i) out[i] = values[in[i].x];
}
inline void widen(const c10::Float8_e4m3fn* in, int count, float* out) { widen_float8(in, count, out); }
inline void widen(const c10::Float8_e5m2* in, int count, float* out) { widen_float8(in, count, out); }

// `count` numbers from one stored type to another, of which one is the type computed in.
template <typename From, typename To>
void convert(const From* from, int count, To* to) {
  if constexpr (std::is_same_v<From, To>) {
    std::memcpy(static_cast<void*>(to), from, count * sizeof(To));
  } else if constexpr (std::is_same_v<From, compute_t<To>>) {
    narrow(from, count, to);
  } else {
    widen(from, count, to);
  }
}

// Columns [first, first + count) of a row; `first` a multiple of kDropoutBlock.
template <typename Feature, typename To>
void read_features(const FeatureRows& rows, int64_t row, int64_t first, int64_t count, To* to) {
  using Real = compute_t<To>;
  const Feature* from = rows.at<Feature>(row) + first;
  if constexpr (std::is_same_v<Feature, To>) {
    if (!rows.dropout.active()) {
      std::memcpy(to, from, count * sizeof(To));
      return;
    }
  }
  const Real scale = rows.scale_of(row);
  alignas(64) float factors[kDropoutBlock];
  alignas(64) Real values[kDropoutBlock];
  for (int64_t begin = 0; begin < count; begin += kDropoutBlock) {
    const int width = static_cast<int>(std::min<int64_t>(kDropoutBlock, count - begin));
    const Real* wide = values;
    if constexpr (std::is_same_v<Feature, Real>) {
      wide = from + begin;
    } else {
      convert(from + begin, width, values);
    }
    if (rows.dropout.active()) {
      const auto block = static_cast<uint32_t>((first + begin) / kDropoutBlock);
      dropout_factors(rows.dropout, 0, static_cast<uint32_t>(row), block, factors);
      FB_SIMD()
      for (int i = 0; i < width; ++i) {
        values[i] = factors[i] != 0 ? wide[i] * (scale * static_cast<Real>(factors[i])) : Real(0);
      }
      wide = values;
    } else if (rows.scale) {
      FB_SIMD()
      for (int i = 0; i < width; ++i) values[i] = wide[i] * scale;
      wide = values;
    }
    convert(wide, width, to + begin);
  }
}

// Calls body.template operator()<Feature>(): any stored dtype for To narrower than float64, which takes only itself.
template <typename To, typename Body>
void dispatch_features(ScalarType dtype, Body&& body) {
  if constexpr (std::is_same_v<To, double>) {
    STD_TORCH_CHECK(dtype == ScalarType::Double, "float64 weights take float64 features");
    body.template operator()<double>();
  } else {
    switch (dtype) {
      case ScalarType::Float:
        return body.template operator()<float>();
      case ScalarType::BFloat16:
        return body.template operator()<c10::BFloat16>();
      case ScalarType::Half:
        return body.template operator()<c10::Half>();
      case ScalarType::Char:
        return body.template operator()<int8_t>();
      case ScalarType::Float8_e4m3fn:
        return body.template operator()<c10::Float8_e4m3fn>();
      case ScalarType::Float8_e5m2:
        return body.template operator()<c10::Float8_e5m2>();
      default:
        STD_TORCH_CHECK(false, "features must be float32, bfloat16, float16, int8, float8_e4m3fn or float8_e5m2");
    }
  }
}

}  // namespace fashionbert
