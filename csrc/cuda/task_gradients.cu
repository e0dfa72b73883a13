// The gate's two passes on CUDA: bound by reading the gradients, 16 bytes a load. CUDA C++ because the reduction is
// what there is to it: registers, shuffles, one partial row a block, then one block adds the rows in order. No atomics:
// the same bits every time.
#include "common/task_gradients.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdint>

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

// The first `packs` packs of each gradient by 16-byte loads, the elements after them one by one.
template <typename Storage>
__global__ void __launch_bounds__(kThreads) products_kernel(const Storage* a, const Storage* b, const Storage* c,
                                                            int64_t count, int64_t packs, double* partial) {
  using Real = compute_t<Storage>;
  Products<Real> thread = {};
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = first; i < packs; i += step) {
    const auto of_a = reinterpret_cast<const Pack<Storage>*>(a)[i];
    const auto of_b = reinterpret_cast<const Pack<Storage>*>(b)[i];
    const auto of_c = reinterpret_cast<const Pack<Storage>*>(c)[i];
    FB_UNROLL for (int v = 0; v < Pack<Storage>::kSize; ++v) {
      thread.add(static_cast<Real>(of_a.values[v]), static_cast<Real>(of_b.values[v]),
                 static_cast<Real>(of_c.values[v]));
    }
  }
  for (int64_t i = packs * Pack<Storage>::kSize + first; i < count; i += step)
    thread.add(static_cast<Real>(a[i]), static_cast<Real>(b[i]), static_cast<Real>(c[i]));

  __shared__ double of_warp[kProducts][kWarps];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  FB_UNROLL for (int product = 0; product < kProducts; ++product) {
    const double sum = warp_sum(static_cast<double>(thread.sums[product]));
    if (lane == 0) of_warp[product][warp] = sum;
  }
  __syncthreads();
  if (threadIdx.x >= kProducts) return;
  double sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += of_warp[threadIdx.x][w];
  partial[static_cast<int64_t>(blockIdx.x) * kProducts + threadIdx.x] = sum;
}

// One warp a product.
__global__ void gram_kernel(const double* partial, int blocks, float* gram) {
  const int product = threadIdx.x / 32, lane = threadIdx.x % 32;
  double sum = 0;
  for (int block = lane; block < blocks; block += 32) sum += partial[block * kProducts + product];
  sum = warp_sum(sum);
  if (lane == 0) store_product(product, sum, gram);
}

template <typename Storage>
__global__ void __launch_bounds__(kThreads)
    mix_kernel(const Storage* a, const Storage* b, const Storage* c, const float* weights, int64_t count, int64_t packs,
               Storage* out) {
  using Real = compute_t<Storage>;
  const Real w_a = weights[0], w_b = weights[1], w_c = weights[2];
  const auto mix_one = [&](Storage of_a, Storage of_b, Storage of_c) {
    return static_cast<Storage>(
        mixed<Real>(static_cast<Real>(of_a), static_cast<Real>(of_b), static_cast<Real>(of_c), w_a, w_b, w_c));
  };
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = first; i < packs; i += step) {
    const auto of_a = reinterpret_cast<const Pack<Storage>*>(a)[i];
    const auto of_b = reinterpret_cast<const Pack<Storage>*>(b)[i];
    const auto of_c = reinterpret_cast<const Pack<Storage>*>(c)[i];
    Pack<Storage> result;
    FB_UNROLL for (int v = 0; v < Pack<Storage>::kSize; ++v) {
      result.values[v] = mix_one(of_a.values[v], of_b.values[v], of_c.values[v]);
    }
    reinterpret_cast<Pack<Storage>*>(out)[i] = result;
  }
  for (int64_t i = packs * Pack<Storage>::kSize + first; i < count; i += step) out[i] = mix_one(a[i], b[i], c[i]);
}

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

int blocks_for(int64_t count, int pack) {
  return static_cast<int>(std::clamp<int64_t>((count + kThreads * pack - 1) / (kThreads * pack), 1, kMaxBlocks));
}

Tensor gram(Tensor a, Tensor b, Tensor c) {
  const int64_t count = checked_gradient_size(a, b, c);
  torch::stable::accelerator::DeviceGuard guard(a.get_device_index());
  Tensor result = torch::stable::new_empty(a, {kGateTasks, kGateTasks}, ScalarType::Float);
  dispatch_floating(a.scalar_type(), "task_gram", [&]<typename Storage>() {
    const auto* of_a = static_cast<const Storage*>(a.const_data_ptr());
    const auto* of_b = static_cast<const Storage*>(b.const_data_ptr());
    const auto* of_c = static_cast<const Storage*>(c.const_data_ptr());
    const bool packed = aligned(of_a) && aligned(of_b) && aligned(of_c);
    const int blocks = blocks_for(count, Pack<Storage>::kSize);
    Tensor partial = torch::stable::new_empty(a, {blocks, kProducts}, ScalarType::Double);
    auto* rows = static_cast<double*>(partial.mutable_data_ptr());
    launch("task_gram", products_kernel<Storage>, blocks, kThreads, current_stream(a), of_a, of_b, of_c, count,
           packed ? count / Pack<Storage>::kSize : 0, rows);
    launch("task_gram", gram_kernel, 1, kProducts * 32, current_stream(a), rows, blocks,
           static_cast<float*>(result.mutable_data_ptr()));
  });
  return result;
}

Tensor mix(Tensor a, Tensor b, Tensor c, Tensor weights) {
  const int64_t count = checked_gradient_size(a, b, c);
  const float* w = checked_weights(weights);
  torch::stable::accelerator::DeviceGuard guard(a.get_device_index());
  Tensor result = torch::stable::empty_like(a);
  dispatch_floating(a.scalar_type(), "task_mix", [&]<typename Storage>() {
    const auto* of_a = static_cast<const Storage*>(a.const_data_ptr());
    const auto* of_b = static_cast<const Storage*>(b.const_data_ptr());
    const auto* of_c = static_cast<const Storage*>(c.const_data_ptr());
    auto* out = static_cast<Storage*>(result.mutable_data_ptr());
    const bool packed = aligned(of_a) && aligned(of_b) && aligned(of_c) && aligned(out);
    launch("task_mix", mix_kernel<Storage>, blocks_for(count, Pack<Storage>::kSize), kThreads, current_stream(a), of_a,
           of_b, of_c, w, count, packed ? count / Pack<Storage>::kSize : 0, out);
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fashionbert_fast, CUDA, m) {
  m.impl("task_gram", TORCH_BOX(&gram));
  m.impl("task_mix", TORCH_BOX(&mix));
}

}  // namespace fashionbert
