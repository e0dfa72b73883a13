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
#include <optional>
#include <vector>

#include "common/gate_tensors.h"
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

template <typename Storage, int kTasks>
using Gradients = OfTasks<const Storage*, kTasks>;

template <typename Storage, int kTasks>
OfTasks<vector_t<compute_t<Storage>>, kTasks> load_at(const Gradients<Storage, kTasks>& gradients, int64_t i) {
  OfTasks<vector_t<compute_t<Storage>>, kTasks> result;
  FB_UNROLL for (int task = 0; task < kTasks; ++task)
    result.of[task] = load(gradients.of[task] + i);
  return result;
}

template <typename Real, typename Storage, int kTasks>
OfTasks<Real, kTasks> number_at(const Gradients<Storage, kTasks>& gradients, int64_t i) {
  OfTasks<Real, kTasks> result;
  FB_UNROLL for (int task = 0; task < kTasks; ++task)
    result.of[task] = static_cast<Real>(gradients.of[task][i]);
  return result;
}

// The products of the elements from `i` to before `end`.
template <typename Storage, int kTasks>
Products<double, kTasks> range_products(const Gradients<Storage, kTasks>& gradients, int64_t i, int64_t end) {
  using Real = compute_t<Storage>;
  Products<wide_t<Real>, kTasks> lanes = {};
  while (i + kLanes<Real> <= end) {
    const int64_t strip_end = i + std::min(kStrip, (end - i) / kLanes<Real>) * kLanes<Real>;
    Products<vector_t<Real>, kTasks> strip = {};
    for (; i < strip_end; i += kLanes<Real>) strip.add(load_at(gradients, i));
    for (int product = 0; product < kProducts<kTasks>; ++product)
      lanes.sums[product] += __builtin_convertvector(strip.sums[product], wide_t<Real>);
  }
  Products<double, kTasks> total = {};
  for (int product = 0; product < kProducts<kTasks>; ++product)
    for (int64_t lane = 0; lane < kLanes<Real>; ++lane) total.sums[product] += lanes.sums[product][lane];
  for (; i < end; ++i) total.add(number_at<double>(gradients, i));
  return total;
}

template <int kTasks>
Tensor gram_of(const GateTensors& tensors) {
  const int64_t count = tensors.count(), blocks = (count + kBlock - 1) / kBlock;
  std::vector<Products<double, kTasks>> partial(blocks);
  dispatch_floating(tensors.a.scalar_type(), "task_gram", [&]<typename Storage>() {
    const auto gradients = tensors.pointers<Storage, kTasks>();
    torch::stable::parallel_for(0, blocks, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block)
        partial[block] = range_products(gradients, block * kBlock, std::min((block + 1) * kBlock, count));
    });
  });
  Tensor result = torch::stable::new_empty(tensors.a, {kTasks, kTasks}, ScalarType::Float);
  for (int product = 0; product < kProducts<kTasks>; ++product) {
    double sum = 0;
    for (const auto& block : partial) sum += block.sums[product];
    store_product<kTasks>(product, sum, static_cast<float*>(result.mutable_data_ptr()));
  }
  return result;
}

template <typename Storage, int kTasks, typename Real = compute_t<Storage>>
void mix_range(const Gradients<Storage, kTasks>& gradients, const OfTasks<Real, kTasks>& weights, int64_t i,
               int64_t end, Storage* out) {
  for (; i + kLanes<Real> <= end; i += kLanes<Real>) store(mixed(load_at(gradients, i), weights), out + i);
  for (; i < end; ++i) out[i] = static_cast<Storage>(mixed(number_at<Real>(gradients, i), weights));
}

template <int kTasks>
Tensor mix_of(const GateTensors& tensors, const Tensor& weights) {
  const int64_t count = tensors.count(), blocks = (count + kBlock - 1) / kBlock;
  const float* w = checked_weights(weights, kTasks);
  Tensor result = torch::stable::empty_like(tensors.a);
  dispatch_floating(tensors.a.scalar_type(), "task_mix", [&]<typename Storage>() {
    const auto gradients = tensors.pointers<Storage, kTasks>();
    OfTasks<compute_t<Storage>, kTasks> of_tasks;
    for (int task = 0; task < kTasks; ++task) of_tasks.of[task] = w[task];
    auto* out = static_cast<Storage*>(result.mutable_data_ptr());
    torch::stable::parallel_for(0, blocks, kGrain, [&](int64_t begin, int64_t end) {
      mix_range(gradients, of_tasks, begin * kBlock, std::min(end * kBlock, count), out);
    });
  });
  return result;
}

Tensor gram(Tensor a, Tensor b, Tensor c, std::optional<Tensor> d) {
  const GateTensors tensors(a, b, c, d);
  return d ? gram_of<4>(tensors) : gram_of<3>(tensors);
}

Tensor mix(Tensor a, Tensor b, Tensor c, Tensor weights, std::optional<Tensor> d) {
  const GateTensors tensors(a, b, c, d);
  return d ? mix_of<4>(tensors, weights) : mix_of<3>(tensors, weights);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fashionbert_fast, CPU, m) {
  m.impl("task_gram", TORCH_BOX(&gram));
  m.impl("task_mix", TORCH_BOX(&mix));
}

}  // namespace fashionbert
