// patch_kld on CPU: one pass over memory forward, one backward. A row is worked on in chunks that stay in the first
// cache. The backward recomputes the exponentials; a forward that stored the gradient would have to write M x D numbers
// and the backward to scale them into as many again. While all that fits the cache it would be somewhat faster, but at
// thousands of rows the page faults of the second fresh buffer cost more than the exponentials, bfloat16 gradients
// would be rounded twice, and a forward without a backward would pay as well.
#include "common/patch_kld.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "common/patch_kld_rows.h"
#include "cpu/convert.h"

namespace fashionbert {
namespace {

constexpr int kChunk = 1024;

template <typename Logit, typename Target>
int64_t target_row(const KldRows<Logit, Target>& rows, int64_t m) {
  return rows.index ? rows.index[m] : m;
}

// Calls use(first element, count, logits, targets) for each chunk of row m, both widened to Real.
template <typename Logit, typename Target, typename Use>
void for_chunks(const KldRows<Logit, Target>& rows, int64_t m, Use&& use) {
  using Real = compute_t<Logit>;
  alignas(64) Real logits_buffer[kChunk], targets_buffer[kChunk];
  const Logit* logits = rows.logits + m * rows.logits_stride;
  const Target* targets = rows.targets + target_row(rows, m) * rows.targets_stride;
  const int64_t next_row = rows.index && m + 1 < rows.count ? rows.index[m + 1] : target_row(rows, m);
  const Target* next_targets = rows.targets + next_row * rows.targets_stride;
  for (int64_t first = 0; first < rows.width; first += kChunk) {
    const int count = static_cast<int>(std::min<int64_t>(kChunk, rows.width - first));
    if (rows.index) prefetch(next_targets + first, count * sizeof(Target));
    use(first, count, widened<Real>(logits + first, count, logits_buffer),
        widened<Real>(targets + first, count, targets_buffer));
  }
}

std::tuple<Tensor, Tensor> forward(Tensor logits, Tensor target, std::optional<Tensor> target_rows) {
  const KldTensors tensors = checked_kld_tensors(logits, target, target_rows);
  check_target_rows(tensors, /*may_ignore=*/false);
  const int64_t count = logits.size(0);
  Tensor loss = torch::stable::new_empty(logits, {}, kld_compute_dtype(logits));
  Tensor saved = torch::stable::new_empty(logits, {count, kKldRowSize}, kld_compute_dtype(logits));
  dispatch_kld(logits, target, [&]<typename Logit, typename Target>() {
    using Real = compute_t<Logit>;
    const auto rows = tensors.view<Logit, Target>();
    auto* out = static_cast<KldRow<Real>*>(saved.mutable_data_ptr());
    std::vector<Real> divergences(count);
    torch::stable::parallel_for(0, count, row_grain(rows.width), [&](int64_t begin, int64_t end) {
      for (int64_t m = begin; m < end; ++m) {
        KldPart<Real> part;
        for_chunks(rows, m, [&](int64_t, int chunk, const Real* z, const Real* t) {
          part = kld_merge(part, kld_part(z, t, chunk));
        });
        divergences[m] = kld_finish(part, &out[m]);
      }
    });
    double sum = 0;  // row by row, whatever the number of threads
    for (const Real divergence : divergences) sum += divergence;
    *static_cast<Real*>(loss.mutable_data_ptr()) = static_cast<Real>(sum / std::max<int64_t>(count, 1));
  });
  return {loss, saved};
}

Tensor backward(Tensor grad_loss, Tensor logits, Tensor target, std::optional<Tensor> target_rows, Tensor saved) {
  const KldTensors tensors = checked_kld_tensors(logits, target, target_rows);
  check_target_rows(tensors, /*may_ignore=*/false);
  const Tensor saved_rows = checked_kld_saved(saved, grad_loss, logits);
  Tensor gradient = torch::stable::new_empty(logits, {logits.size(0), logits.size(1)});
  dispatch_kld(logits, target, [&]<typename Logit, typename Target>() {
    using Real = compute_t<Logit>;
    const auto rows = tensors.view<Logit, Target>();
    const auto* row = static_cast<const KldRow<Real>*>(saved_rows.const_data_ptr());
    const Real scale =
        *static_cast<const Real*>(grad_loss.const_data_ptr()) / static_cast<Real>(std::max<int64_t>(rows.count, 1));
    auto* out = static_cast<Logit*>(gradient.mutable_data_ptr());
    torch::stable::parallel_for(0, rows.count, row_grain(rows.width), [&](int64_t begin, int64_t end) {
      alignas(64) Real buffer[kChunk];
      for (int64_t m = begin; m < end; ++m) {
        for_chunks(rows, m, [&](int64_t first, int chunk, const Real* z, const Real* t) {
          Logit* to = out + m * rows.width + first;
          if constexpr (std::is_same_v<Logit, Real>) {
            kld_gradient(z, t, chunk, row[m], scale, to);
          } else {
            kld_gradient(z, t, chunk, row[m], scale, buffer);
            narrow(buffer, chunk, to);
          }
        });
      }
    });
  });
  return gradient;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fashionbert_fast, CPU, m) {
  m.impl("patch_kld", TORCH_BOX(&forward));
  m.impl("patch_kld_backward", TORCH_BOX(&backward));
}

}  // namespace fashionbert
