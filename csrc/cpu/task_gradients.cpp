// The gate's two passes on CPU: vectorised, multi-threaded, each gradient read once a pass.
//
// The Gram matrix is the same whatever the number of threads: strips of fixed size are summed in the compute type, then
// added up in order, in double.

// Vectors of 64 bytes stay inside this file, so how a processor without AVX-512 passes them does not matter.
#pragma GCC diagnostic ignored "-Wpsabi"

#include "common/task_gradients.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/tensor.h"

namespace fashionbert {
namespace {

constexpr int64_t kBlock = 4096;  // elements a thread takes at once
constexpr int64_t kGrain = 8;     // blocks a thread, at least
// Vectors summed before they join the sums in double. The sums of L terms a lane err by some eps / 6 x L / sqrt(count)
// of the whole: below the rounding of a float32 result from a few hundred elements on.
constexpr int64_t kStrip = 16;

template <typename Real>
struct VectorOf {
  typedef Real type __attribute__((vector_size(64)));
};
template <typename Real>
using vector_t = typename VectorOf<Real>::type;
template <typename Real>
constexpr int64_t kLanes = 64 / sizeof(Real);

// As many lanes of double.
template <typename Real>
struct WideOf {
  typedef double type __attribute__((vector_size(8 * kLanes<Real>)));
};
template <typename Real>
using wide_t = typename WideOf<Real>::type;

template <typename Storage>
vector_t<compute_t<Storage>> load(const Storage* from) {
  using Real = compute_t<Storage>;
  Real wide[kLanes<Real>];
  for (int64_t lane = 0; lane < kLanes<Real>; ++lane) wide[lane] = static_cast<Real>(from[lane]);
  vector_t<Real> result;
  std::memcpy(&result, wide, sizeof(result));
  return result;
}

template <typename Storage>
void store(vector_t<compute_t<Storage>> value, Storage* to) {
  using Real = compute_t<Storage>;
  Real wide[kLanes<Real>];
  std::memcpy(wide, &value, sizeof(value));
  for (int64_t lane = 0; lane < kLanes<Real>; ++lane) to[lane] = static_cast<Storage>(wide[lane]);
}

// Rounded to the nearest even as c10::BFloat16 rounds, whose branch for NaN the compiler does not vectorise.
void store(vector_t<float> value, c10::BFloat16* to) {
  typedef uint32_t Bits __attribute__((vector_size(64)));
  typedef uint16_t Halves __attribute__((vector_size(32)));
  Bits bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Bits nan = (Bits)(value != value);
  const Halves halves = __builtin_convertvector((nan & 0x7fc0u) | (~nan & rounded), Halves);
  std::memcpy(to, &halves, sizeof(halves));
}

template <typename Storage>
Products<double> block_products(const Storage* a, const Storage* b, const Storage* c, int64_t count) {
  using Real = compute_t<Storage>;
  Products<wide_t<Real>> lanes = {};
  int64_t i = 0;
  while (i + kLanes<Real> <= count) {
    const int64_t vectors = std::min(kStrip, (count - i) / kLanes<Real>), end = i + vectors * kLanes<Real>;
    Products<vector_t<Real>> strip = {};
    for (; i < end; i += kLanes<Real>) strip.add(load(a + i), load(b + i), load(c + i));
    for (int product = 0; product < kProducts; ++product)
      lanes.sums[product] += __builtin_convertvector(strip.sums[product], wide_t<Real>);
  }
  Products<double> total = {};
  for (int product = 0; product < kProducts; ++product)
    for (int64_t lane = 0; lane < kLanes<Real>; ++lane) total.sums[product] += lanes.sums[product][lane];
  for (; i < count; ++i) total.add(static_cast<double>(a[i]), static_cast<double>(b[i]), static_cast<double>(c[i]));
  return total;
}

Tensor gram(Tensor a, Tensor b, Tensor c) {
  const int64_t count = checked_gradient_size(a, b, c), blocks = (count + kBlock - 1) / kBlock;
  std::vector<Products<double>> partial(blocks);
  dispatch_floating(a.scalar_type(), "task_gram", [&]<typename Storage>() {
    const auto* of_a = static_cast<const Storage*>(a.const_data_ptr());
    const auto* of_b = static_cast<const Storage*>(b.const_data_ptr());
    const auto* of_c = static_cast<const Storage*>(c.const_data_ptr());
    torch::stable::parallel_for(0, blocks, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t from = block * kBlock;
        partial[block] = block_products(of_a + from, of_b + from, of_c + from, std::min(kBlock, count - from));
      }
    });
  });
  Tensor result = torch::stable::new_empty(a, {kGateTasks, kGateTasks}, ScalarType::Float);
  for (int product = 0; product < kProducts; ++product) {
    double sum = 0;
    for (const auto& block : partial) sum += block.sums[product];
    store_product(product, sum, static_cast<float*>(result.mutable_data_ptr()));
  }
  return result;
}

template <typename Storage, typename Real = compute_t<Storage>>
void mix_range(const Storage* a, const Storage* b, const Storage* c, const float* weights, int64_t count,
               Storage* out) {
  const Real w_a = weights[0], w_b = weights[1], w_c = weights[2];
  int64_t i = 0;
  for (; i + kLanes<Real> <= count; i += kLanes<Real>)
    store(mixed(load(a + i), load(b + i), load(c + i), w_a, w_b, w_c), out + i);
  for (; i < count; ++i)
    out[i] = static_cast<Storage>(
        mixed(static_cast<Real>(a[i]), static_cast<Real>(b[i]), static_cast<Real>(c[i]), w_a, w_b, w_c));
}

Tensor mix(Tensor a, Tensor b, Tensor c, Tensor weights) {
  const int64_t count = checked_gradient_size(a, b, c), blocks = (count + kBlock - 1) / kBlock;
  const float* w = checked_weights(weights);
  Tensor result = torch::stable::empty_like(a);
  dispatch_floating(a.scalar_type(), "task_mix", [&]<typename Storage>() {
    const auto* of_a = static_cast<const Storage*>(a.const_data_ptr());
    const auto* of_b = static_cast<const Storage*>(b.const_data_ptr());
    const auto* of_c = static_cast<const Storage*>(c.const_data_ptr());
    auto* out = static_cast<Storage*>(result.mutable_data_ptr());
    torch::stable::parallel_for(0, blocks, kGrain, [&](int64_t begin, int64_t end) {
      const int64_t from = begin * kBlock;
      mix_range(of_a + from, of_b + from, of_c + from, w, std::min(end * kBlock, count) - from, out + from);
    });
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fashionbert_fast, CPU, m) {
  m.impl("task_gram", TORCH_BOX(&gram));
  m.impl("task_mix", TORCH_BOX(&mix));
}

}  // namespace fashionbert
