// patch_kld_residual_ on CUDA: what linear_patch_kld does to a block of logits between its matrix products; a block of
// threads a row, which is read, reduced and overwritten by q - p, the second reading coming from the cache.
#include <torch/csrc/stable/library.h>

#include <limits>

#include "common/patch_kld_rows.h"
#include "cuda/patch_kld_block.h"
#include "cuda/launch.h"

namespace fashionbert {
namespace {

template <typename Logit, typename Target, int N>
__global__ void __launch_bounds__(kKldThreads) residual_kernel(KldRows<Logit, Target> rows, int64_t target_count,
                                                               Logit* residuals, compute_t<Logit>* divergences) {
  using Real = compute_t<Logit>;
  const int64_t m = blockIdx.x;
  const Logit* logits = rows.logits + m * rows.logits_stride;
  Logit* residual = residuals + m * rows.logits_stride;
  const bool ignored = rows.index && rows.index[m] == kIgnored;
  const Target* targets = targets_of(rows, m, target_count);
  const KldPart<Real> part = block_part<N>(logits, targets, rows.width);
  KldRow<Real> row;
  const Real divergence = kld_finish(part, &row);
  const Real nothing = ignored ? Real(0) : std::numeric_limits<Real>::quiet_NaN();  // no such target row: NaN
  if (threadIdx.x == 0) divergences[m] = targets ? divergence : nothing;
  for (int64_t i = threadIdx.x * N; i < rows.width; i += kKldThreads * N) {
    Real z[N], t[N], g[N];
    if (targets) {
      load<Real, N>(logits + i, z);
      load<Real, N>(targets + i, t);
      kld_gradient(z, t, N, row, Real(1), g);
    } else {
      FB_UNROLL for (int k = 0; k < N; ++k)
        g[k] = nothing;
    }
    store<Real, N>(g, residual + i);
  }
}

Tensor residual(Tensor logits, Tensor target, std::optional<Tensor> target_rows) {
  check_residual_logits(logits);
  const KldTensors tensors = checked_kld_tensors(logits, target, target_rows);
  torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  const cudaStream_t stream = current_stream(logits);
  Tensor divergences = torch::stable::new_empty(logits, {logits.size(0)}, kld_compute_dtype(logits));
  dispatch_kld(logits, target, [&]<typename Logit, typename Target>() {
    const auto rows = tensors.view<Logit, Target>();
    if (rows.count == 0) return;
    with_pack_size(rows, [&]<int N>() {
      launch("patch_kld_residual_", residual_kernel<Logit, Target, N>, rows.count, kKldThreads, stream, rows,
             tensors.target.size(0), static_cast<Logit*>(logits.mutable_data_ptr()),
             static_cast<compute_t<Logit>*>(divergences.mutable_data_ptr()));
    });
  });
  return divergences;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fashionbert_fast, CUDA, m) { m.impl("patch_kld_residual_", TORCH_BOX(&residual)); }

}  // namespace fashionbert
