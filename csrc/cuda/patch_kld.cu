// patch_kld on CUDA: a block a row, one read of each input forward and one backward, no host synchronisation. A
// row-wise reduction decided by warp shuffles and 16-byte loads, which is why this is CUDA C++ and not Triton. The loss
// is summed by a second kernel in a fixed order: atomics would make it differ from run to run.
#include "common/patch_kld.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "common/patch_kld_rows.h"
#include "cuda/patch_kld_block.h"
#include "cuda/launch.h"

namespace fashionbert {
namespace {

constexpr int kSumThreads = 1024;

template <typename Logit, typename Target, int N>
__global__ void __launch_bounds__(kKldThreads)
    forward_kernel(KldRows<Logit, Target> rows, int64_t target_count, KldRow<compute_t<Logit>>* saved,
                   compute_t<Logit>* divergences) {
  using Real = compute_t<Logit>;
  const int64_t m = blockIdx.x;
  const Target* targets = targets_of(rows, m, target_count);
  const KldPart<Real> part = block_part<N>(rows.logits + m * rows.logits_stride, targets, rows.width);
  if (threadIdx.x == 0) {
    KldRow<Real> row;
    const Real divergence = kld_finish(part, &row);
    saved[m] = row;
    divergences[m] = targets ? divergence : std::numeric_limits<Real>::quiet_NaN();
  }
}

// loss = the mean of `count` divergences (0 for none), added in an order that only `count` decides.
template <typename Real>
__global__ void __launch_bounds__(kSumThreads) mean_kernel(const Real* divergences, int64_t count, Real* loss) {
  __shared__ double shared[kSumThreads];
  double sum = 0;
  for (int64_t m = threadIdx.x; m < count; m += kSumThreads) sum += divergences[m];
  shared[threadIdx.x] = sum;
  __syncthreads();
  for (int half = kSumThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) *loss = static_cast<Real>(shared[0] / static_cast<double>(count > 0 ? count : 1));
}

template <typename Logit, typename Target, int N>
__global__ void __launch_bounds__(kKldThreads)
    backward_kernel(KldRows<Logit, Target> rows, int64_t target_count, const compute_t<Logit>* grad_loss,
                    const KldRow<compute_t<Logit>>* saved, Logit* gradients) {
  using Real = compute_t<Logit>;
  const int64_t m = blockIdx.x;
  const Logit* logits = rows.logits + m * rows.logits_stride;
  const Target* targets = targets_of(rows, m, target_count);
  const KldRow<Real> row = saved[m];
  Real scale = *grad_loss / static_cast<Real>(rows.count);
  if (!targets) {  // nothing to read: NaN, as the loss is
    targets = rows.targets;
    scale = std::numeric_limits<Real>::quiet_NaN();
  }
#pragma unroll 2
  for (int64_t i = threadIdx.x * N; i < rows.width; i += kKldThreads * N) {
    Real z[N], t[N], g[N];
    load<Real, N>(logits + i, z);
    load<Real, N>(targets + i, t);
    kld_gradient(z, t, N, row, scale, g);
    store<Real, N>(g, gradients + m * rows.width + i);
  }
}

std::tuple<Tensor, Tensor> forward(Tensor logits, Tensor target, std::optional<Tensor> target_rows) {
  const KldTensors tensors = checked_kld_tensors(logits, target, target_rows);
  torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  const cudaStream_t stream = current_stream(logits);
  const ScalarType dtype = kld_compute_dtype(logits);
  Tensor loss = torch::stable::new_empty(logits, {}, dtype);
  Tensor saved = torch::stable::new_empty(logits, {logits.size(0), kKldRowSize}, dtype);
  Tensor divergences = torch::stable::new_empty(logits, {logits.size(0)}, dtype);
  dispatch_kld(logits, target, [&]<typename Logit, typename Target>() {
    using Real = compute_t<Logit>;
    const auto rows = tensors.view<Logit, Target>();
    auto* each = static_cast<Real*>(divergences.mutable_data_ptr());
    if (rows.count > 0) {
      with_pack_size(rows, [&]<int N>() {
        launch("patch_kld", forward_kernel<Logit, Target, N>, rows.count, kKldThreads, stream, rows,
               tensors.target.size(0), static_cast<KldRow<Real>*>(saved.mutable_data_ptr()), each);
      });
    }
    launch("patch_kld", mean_kernel<Real>, 1, kSumThreads, stream, each, rows.count,
           static_cast<Real*>(loss.mutable_data_ptr()));
  });
  return {loss, saved};
}

Tensor backward(Tensor grad_loss, Tensor logits, Tensor target, std::optional<Tensor> target_rows, Tensor saved) {
  const KldTensors tensors = checked_kld_tensors(logits, target, target_rows);
  const Tensor saved_rows = checked_kld_saved(saved, grad_loss, logits);
  torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  const cudaStream_t stream = current_stream(logits);
  Tensor gradient = torch::stable::new_empty(logits, {logits.size(0), logits.size(1)});
  dispatch_kld(logits, target, [&]<typename Logit, typename Target>() {
    using Real = compute_t<Logit>;
    const auto rows = tensors.view<Logit, Target>();
    if (rows.count == 0 || rows.width == 0) return;
    with_pack_size(rows, [&]<int N>() {
      launch("patch_kld_backward", backward_kernel<Logit, Target, N>, rows.count, kKldThreads, stream, rows,
             tensors.target.size(0), static_cast<const Real*>(grad_loss.const_data_ptr()),
             static_cast<const KldRow<Real>*>(saved_rows.const_data_ptr()),
             static_cast<Logit*>(gradient.mutable_data_ptr()));
    });
  });
  return gradient;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fashionbert_fast, CUDA, m) {
  m.impl("patch_kld", TORCH_BOX(&forward));
  m.impl("patch_kld_backward", TORCH_BOX(&backward));
}

}  // namespace fashionbert
