// cross_entropy_residual_ on CUDA: what linear_cross_entropy does to a block of logits between its matrix products; a
// block of threads a row: online softmax, then softmax - one-hot over it, the second reading coming from the cache.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <limits>

#include "common/cross_entropy_rows.h"
#include "common/softmax.h"
#include "cuda/launch.h"

namespace fashionbert {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / 32;
constexpr int kPiece = 4;  // numbers a thread reduces before it moves to a common maximum
constexpr unsigned kAllLanes = 0xffffffffu;

template <typename Real>
__device__ __forceinline__ SoftmaxPart<Real> warp_merge(SoftmaxPart<Real> part) {
  Real max = part.max;
  FB_UNROLL for (int lane = 16; lane > 0; lane /= 2) {
    const Real other = __shfl_xor_sync(kAllLanes, max, lane);
    max = other > max ? other : max;
  }
  part = softmax_rescale(part, max);
  FB_UNROLL for (int lane = 16; lane > 0; lane /= 2)
    part.sum += __shfl_xor_sync(kAllLanes, part.sum, lane);
  return part;
}

template <typename Logit>
__device__ __forceinline__ compute_t<Logit> biased(const CrossEntropyRows<Logit>& rows, const Logit* row, int64_t i) {
  using Real = compute_t<Logit>;
  return static_cast<Real>(row[i]) + (rows.bias ? static_cast<Real>(rows.bias[i]) : Real(0));
}

// The softmax of a whole row, in every thread.
template <typename Logit>
__device__ SoftmaxPart<compute_t<Logit>> block_softmax(const CrossEntropyRows<Logit>& rows, const Logit* row) {
  using Real = compute_t<Logit>;
  SoftmaxPart<Real> part;
  const int64_t whole = rows.width / (kThreads * kPiece) * (kThreads * kPiece);
  for (int64_t i = threadIdx.x; i < whole; i += kThreads * kPiece) {
    Real values[kPiece];
    FB_UNROLL for (int k = 0; k < kPiece; ++k)
      values[k] = biased(rows, row, i + k * kThreads);
    part = softmax_merge(part, softmax_part(values, kPiece));
  }
  for (int64_t i = whole + threadIdx.x; i < rows.width; i += kThreads) {
    const Real value = biased(rows, row, i);
    part = softmax_merge(part, softmax_part(&value, 1));
  }
  __shared__ Real shared[kWarps][2];
  part = warp_merge(part);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (lane == 0) shared[warp][0] = part.max, shared[warp][1] = part.sum;
  __syncthreads();
  part = SoftmaxPart<Real>();
  if (lane < kWarps) part = {shared[lane][0], shared[lane][1]};
  return warp_merge(part);
}

template <typename Logit>
__global__ void __launch_bounds__(kThreads) residual_kernel(CrossEntropyRows<Logit> rows, compute_t<Logit>* losses) {
  using Real = compute_t<Logit>;
  const int64_t m = blockIdx.x;
  Logit* row = rows.logits + m * rows.stride;
  const int64_t label = rows.labels[m];
  if (label == kIgnored) {
    for (int64_t i = threadIdx.x; i < rows.width; i += kThreads) row[i] = static_cast<Logit>(Real(0));
    if (threadIdx.x == 0) losses[m] = Real(0);
    return;
  }
  const SoftmaxPart<Real> softmax = block_softmax(rows, row);
  const bool known = label >= 0 && label < rows.width;  // a kernel cannot raise: NaN
  if (threadIdx.x == 0) {
    losses[m] =
        known ? (softmax.max - biased(rows, row, label)) + log(softmax.sum) : std::numeric_limits<Real>::quiet_NaN();
  }
  __syncthreads();  // the labelled logit has been read
  const Real scale = known ? Real(1) / softmax.sum : std::numeric_limits<Real>::quiet_NaN();
  for (int64_t i = threadIdx.x; i < rows.width; i += kThreads) {
    const Real q = exp_nonpositive(biased(rows, row, i) - softmax.max) * scale;
    row[i] = static_cast<Logit>(i == label ? q - Real(1) : q);
  }
}

Tensor residual(Tensor logits, std::optional<Tensor> bias, Tensor labels) {
  check_cross_entropy(logits, bias, labels);
  torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  Tensor losses = torch::stable::new_empty(logits, {logits.size(0)}, ScalarType::Float);
  dispatch_floating(logits.scalar_type(), "cross_entropy_residual_", [&]<typename Logit>() {
    if constexpr (sizeof(Logit) < 8) {
      const auto rows = cross_entropy_rows<Logit>(logits, bias, labels);
      if (rows.count == 0) return;
      launch("cross_entropy_residual_", residual_kernel<Logit>, rows.count, kThreads, current_stream(logits), rows,
             static_cast<float*>(losses.mutable_data_ptr()));
    } else {
      STD_TORCH_CHECK(false, "cross_entropy_residual_: float64 is for checking gradients on a CPU");
    }
  });
  return losses;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fashionbert_fast, CUDA, m) { m.impl("cross_entropy_residual_", TORCH_BOX(&residual)); }

}  // namespace fashionbert
