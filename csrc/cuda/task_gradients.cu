// The gate's two passes on CUDA: bound by reading the gradients, 16 bytes a load. CUDA C++ because the reduction is
// what there is to it: registers, shuffles, one partial row a block, then one block adds the rows in order. No atomics:
// the same bits every time.
#include "common/task_gradients.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <optional>

#include "common/gate_tensors.h"
#include "common/tensor.h"
#include "cuda/launch.h"

namespace fashionbert {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int64_t kMaxBlocks = 1024;  // about what fills an H100, and few enough rows for one block to add

template <typename Storage>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(Storage);
  Storage values[kSize];
};

__device__ double warp_sum(double value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(0xffffffffu, value, offset);
  return value;
}

template <typename Storage, int kTasks>
using Gradients = OfTasks<const Storage*, kTasks>;

// The i-th pack of each gradient.
template <typename Storage, int kTasks>
__device__ OfTasks<Pack<Storage>, kTasks> packs_at(const Gradients<Storage, kTasks>& gradients, int64_t i) {
  OfTasks<Pack<Storage>, kTasks> result;
  FB_UNROLL for (int task = 0; task < kTasks; ++task)
    result.of[task] = reinterpret_cast<const Pack<Storage>*>(gradients.of[task])[i];
  return result;
}

template <typename Storage, int kTasks, typename Real = compute_t<Storage>>
__device__ OfTasks<Real, kTasks> numbers(const OfTasks<Pack<Storage>, kTasks>& packs, int v) {
  OfTasks<Real, kTasks> result;
  FB_UNROLL for (int task = 0; task < kTasks; ++task)
    result.of[task] = static_cast<Real>(packs.of[task].values[v]);
  return result;
}

template <typename Storage, int kTasks, typename Real = compute_t<Storage>>
__device__ OfTasks<Real, kTasks> numbers_at(const Gradients<Storage, kTasks>& gradients, int64_t i) {
  OfTasks<Real, kTasks> result;
  FB_UNROLL for (int task = 0; task < kTasks; ++task)
    result.of[task] = static_cast<Real>(gradients.of[task][i]);
  return result;
}

// The first `packs` packs of each gradient by 16-byte loads, the elements after them one by one.
template <typename Storage, int kTasks>
__global__ void __launch_bounds__(kThreads)
    products_kernel(Gradients<Storage, kTasks> gradients, int64_t count, int64_t packs, double* partial) {
  Products<compute_t<Storage>, kTasks> thread = {};
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = first; i < packs; i += step) {
    const auto of_tasks = packs_at(gradients, i);
    FB_UNROLL for (int v = 0; v < Pack<Storage>::kSize; ++v) { thread.add(numbers(of_tasks, v)); }
  }
  for (int64_t i = packs * Pack<Storage>::kSize + first; i < count; i += step) thread.add(numbers_at(gradients, i));

  __shared__ double of_warp[kProducts<kTasks>][kWarps];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  FB_UNROLL for (int product = 0; product < kProducts<kTasks>; ++product) {
    const double sum = warp_sum(static_cast<double>(thread.sums[product]));
    if (lane == 0) of_warp[product][warp] = sum;
  }
  __syncthreads();
  if (threadIdx.x >= kProducts<kTasks>) return;
  double sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += of_warp[threadIdx.x][w];
  partial[static_cast<int64_t>(blockIdx.x) * kProducts<kTasks> + threadIdx.x] = sum;
}

// One warp a product.
template <int kTasks>
__global__ void gram_kernel(const double* partial, int blocks, float* gram) {
  const int product = threadIdx.x / 32, lane = threadIdx.x % 32;
  double sum = 0;
  for (int block = lane; block < blocks; block += 32) sum += partial[block * kProducts<kTasks> + product];
  sum = warp_sum(sum);
  if (lane == 0) store_product<kTasks>(product, sum, gram);
}

template <typename Storage, int kTasks>
__global__ void __launch_bounds__(kThreads)
    mix_kernel(Gradients<Storage, kTasks> gradients, const float* weights, int64_t count, int64_t packs, Storage* out) {
  OfTasks<compute_t<Storage>, kTasks> of_tasks;
  FB_UNROLL for (int task = 0; task < kTasks; ++task)
    of_tasks.of[task] = weights[task];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = first; i < packs; i += step) {
    const auto read = packs_at(gradients, i);
    Pack<Storage> result;
    FB_UNROLL for (int v = 0; v < Pack<Storage>::kSize; ++v) {
      result.values[v] = static_cast<Storage>(mixed(numbers(read, v), of_tasks));
    }
    reinterpret_cast<Pack<Storage>*>(out)[i] = result;
  }
  for (int64_t i = packs * Pack<Storage>::kSize + first; i < count; i += step)
    out[i] = static_cast<Storage>(mixed(numbers_at(gradients, i), of_tasks));
}

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

template <typename Storage, int kTasks>
bool all_aligned(const Gradients<Storage, kTasks>& gradients) {
  return std::all_of(std::begin(gradients.of), std::end(gradients.of), aligned);
}

int blocks_for(int64_t count, int pack) {
  return static_cast<int>(std::clamp<int64_t>((count + kThreads * pack - 1) / (kThreads * pack), 1, kMaxBlocks));
}

template <int kTasks>
Tensor gram_of(const GateTensors& tensors) {
  const Tensor& a = tensors.a;
  const int64_t count = tensors.count();
  torch::stable::accelerator::DeviceGuard guard(a.get_device_index());
  Tensor result = torch::stable::new_empty(a, {kTasks, kTasks}, ScalarType::Float);
  dispatch_floating(a.scalar_type(), "task_gram", [&]<typename Storage>() {
    const auto gradients = tensors.pointers<Storage, kTasks>();
    const int blocks = blocks_for(count, Pack<Storage>::kSize);
    Tensor partial = torch::stable::new_empty(a, {blocks, kProducts<kTasks>}, ScalarType::Double);
    auto* rows = static_cast<double*>(partial.mutable_data_ptr());
    launch("task_gram", products_kernel<Storage, kTasks>, blocks, kThreads, current_stream(a), gradients, count,
           all_aligned(gradients) ? count / Pack<Storage>::kSize : 0, rows);
    launch("task_gram", gram_kernel<kTasks>, 1, kProducts<kTasks> * 32, current_stream(a), rows, blocks,
           static_cast<float*>(result.mutable_data_ptr()));
  });
  return result;
}

template <int kTasks>
Tensor mix_of(const GateTensors& tensors, const Tensor& weights) {
  const Tensor& a = tensors.a;
  const int64_t count = tensors.count();
  const float* w = checked_weights(weights, kTasks);
  torch::stable::accelerator::DeviceGuard guard(a.get_device_index());
  Tensor result = torch::stable::empty_like(a);
  dispatch_floating(a.scalar_type(), "task_mix", [&]<typename Storage>() {
    const auto gradients = tensors.pointers<Storage, kTasks>();
    auto* out = static_cast<Storage*>(result.mutable_data_ptr());
    launch("task_mix", mix_kernel<Storage, kTasks>, blocks_for(count, Pack<Storage>::kSize), kThreads,
           current_stream(a), gradients, w, count,
           all_aligned(gradients) && aligned(out) ? count / Pack<Storage>::kSize : 0, out);
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

STABLE_TORCH_LIBRARY_IMPL(fashionbert_fast, CUDA, m) {
  m.impl("task_gram", TORCH_BOX(&gram));
  m.impl("task_mix", TORCH_BOX(&mix));
}

}  // namespace fashionbert
