// A block of threads on a row of logits and its row of targets: what patch_kld.cu and linear_patch_kld.cu share.
#pragma once

#include <cstdint>

#include "common/patch_kld_rows.h"

namespace fashionbert {

constexpr int kKldThreads = 128;  // two loads of 8 elements a thread at D = 2048
constexpr int kKldWarps = kKldThreads / 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// N elements loaded or stored together, 16 bytes an instruction.
template <typename Storage, int N>
struct alignas(N * sizeof(Storage) < 16 ? N * sizeof(Storage) : 16) Pack {
  Storage values[N];
};

template <typename Real, int N, typename Storage>
__device__ __forceinline__ void load(const Storage* from, Real* values) {
  const auto pack = *reinterpret_cast<const Pack<Storage, N>*>(from);
  FB_UNROLL for (int i = 0; i < N; ++i)
    values[i] = static_cast<Real>(pack.values[i]);
}

template <typename Real, int N, typename Storage>
__device__ __forceinline__ void store(const Real* values, Storage* to) {
  Pack<Storage, N> pack;
  FB_UNROLL for (int i = 0; i < N; ++i)
    pack.values[i] = static_cast<Storage>(values[i]);
  *reinterpret_cast<Pack<Storage, N>*>(to) = pack;
}

// The row's targets; nullptr where the index points outside them. The loss is NaN then: a kernel cannot raise.
template <typename Logit, typename Target>
__device__ __forceinline__ const Target* targets_of(const KldRows<Logit, Target>& rows, int64_t m, int64_t most) {
  const int64_t row = rows.index ? rows.index[m] : m;
  return row >= 0 && row < most ? rows.targets + row * rows.targets_stride : nullptr;
}

// Every lane's part as one, in every lane. Maxima first: each part is rescaled once, not at each of five levels.
template <typename Real>
__device__ __forceinline__ KldPart<Real> warp_merge(const KldPart<Real>& part) {
  Real max_q = part.max_q, max_p = part.max_p;
  FB_UNROLL for (int lane = 16; lane > 0; lane /= 2) {
    const Real other_q = __shfl_xor_sync(kAllLanes, max_q, lane), other_p = __shfl_xor_sync(kAllLanes, max_p, lane);
    max_q = other_q > max_q ? other_q : max_q;
    max_p = other_p > max_p ? other_p : max_p;
  }
  KldPart<Real> sum = kld_rescale(part, max_q, max_p);
  FB_UNROLL for (int lane = 16; lane > 0; lane /= 2) {
    sum.sum_q += __shfl_xor_sync(kAllLanes, sum.sum_q, lane);
    sum.sum_p += __shfl_xor_sync(kAllLanes, sum.sum_p, lane);
    sum.sum_d += __shfl_xor_sync(kAllLanes, sum.sum_d, lane);
  }
  return sum;
}

// The part of a whole row, in every thread of the block; `targets` nullptr gives an empty one.
template <int N, typename Logit, typename Target>
__device__ KldPart<compute_t<Logit>> block_part(const Logit* logits, const Target* targets, int64_t width) {
  using Real = compute_t<Logit>;
  KldPart<Real> part;
  if (targets) {
#pragma unroll 2
    for (int64_t i = threadIdx.x * N; i < width; i += kKldThreads * N) {
      Real z[N], t[N];
      load<Real, N>(logits + i, z);
      load<Real, N>(targets + i, t);
      part = kld_merge(part, kld_part(z, t, N));
    }
  }
  __shared__ Real shared[kKldWarps][5];
  part = warp_merge(part);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (lane == 0) {
    shared[warp][0] = part.max_q, shared[warp][1] = part.sum_q, shared[warp][2] = part.max_p;
    shared[warp][3] = part.sum_p, shared[warp][4] = part.sum_d;
  }
  __syncthreads();
  part = KldPart<Real>();
  if (lane < kKldWarps) part = {shared[lane][0], shared[lane][1], shared[lane][2], shared[lane][3], shared[lane][4]};
  return warp_merge(part);
}

inline bool aligned(const void* data, int64_t stride, int64_t size) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride * size % 16 == 0;
}

// Calls launch.template operator()<N>() with the number of elements a load takes.
template <typename Logit, typename Target, typename Launch>
void with_pack_size(const KldRows<Logit, Target>& rows, Launch&& launch) {
  if (rows.width % 8 == 0 && aligned(rows.logits, rows.logits_stride, sizeof(Logit)) &&
      aligned(rows.targets, rows.targets_stride, sizeof(Target))) {
    launch.template operator()<8>();
  } else {
    launch.template operator()<1>();
  }
}

}  // namespace fashionbert
