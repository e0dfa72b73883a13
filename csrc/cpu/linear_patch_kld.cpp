// patch_kld_residual_ on CPU: what linear_patch_kld does to a block of logits between its matrix products. Each row of
// logits becomes q - p, in place, while the product's output is still in the cache. Exponentials are taken once: a
// thread keeps those of its row, and brings the chunks to common maxima by a factor a chunk.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "common/patch_kld_rows.h"
#include "cpu/convert.h"

namespace fashionbert {
namespace {

constexpr int kChunk = 1024;

// One thread's room for a row.
template <typename Real>
struct Scratch {
  std::vector<Real> exp_q, exp_p;  // e^(z - the chunk's maximum), likewise of the targets
  std::vector<Real> max_q, max_p;  // of each chunk
  Real logits[kChunk], targets[kChunk];

  explicit Scratch(int64_t width)
      : exp_q(width), exp_p(width), max_q((width + kChunk - 1) / kChunk), max_p(max_q.size()) {}
};

// The divergence of a row of logits from `targets`; the row becomes q - p.
template <typename Logit, typename Target>
compute_t<Logit> residual_of_row(Logit* logits, const Target* targets, int64_t width,
                                 Scratch<compute_t<Logit>>& scratch) {
  using Real = compute_t<Logit>;
  KldPart<Real> whole;
  for (int64_t first = 0, chunk = 0; first < width; first += kChunk, ++chunk) {
    const int count = static_cast<int>(std::min<int64_t>(kChunk, width - first));
    Real *exp_q = &scratch.exp_q[first], *exp_p = &scratch.exp_p[first];
    const KldPart<Real> part = kld_part(widened<Real>(logits + first, count, scratch.logits),
                                        widened<Real>(targets + first, count, scratch.targets), count,
                                        [=](int i, Real q, Real p) { exp_q[i] = q, exp_p[i] = p; });
    scratch.max_q[chunk] = part.max_q;
    scratch.max_p[chunk] = part.max_p;
    whole = kld_merge(whole, part);
  }
  KldRow<Real> row;
  const Real divergence = kld_finish(whole, &row);
  for (int64_t first = 0, chunk = 0; first < width; first += kChunk, ++chunk) {
    const int count = static_cast<int>(std::min<int64_t>(kChunk, width - first));
    const Real scale_q = row.scale_q * exp_nonpositive(scratch.max_q[chunk] - row.max_q);
    const Real scale_p = row.scale_p * exp_nonpositive(scratch.max_p[chunk] - row.max_p);
    const Real *exp_q = &scratch.exp_q[first], *exp_p = &scratch.exp_p[first];
    FB_SIMD()
    for (int i = 0; i < count; ++i) scratch.logits[i] = exp_q[i] * scale_q - exp_p[i] * scale_p;
    if constexpr (std::is_same_v<Logit, Real>) {
      std::copy_n(scratch.logits, count, logits + first);
    } else {
      narrow(scratch.logits, count, logits + first);
    }
  }
  return divergence;
}

Tensor residual(Tensor logits, Tensor target, std::optional<Tensor> target_rows) {
  check_residual_logits(logits);
  const KldTensors tensors = checked_kld_tensors(logits, target, target_rows);
  check_target_rows(tensors, /*may_ignore=*/true);
  Tensor divergences = torch::stable::new_empty(logits, {logits.size(0)}, kld_compute_dtype(logits));
  dispatch_kld(logits, target, [&]<typename Logit, typename Target>() {
    using Real = compute_t<Logit>;
    const auto rows = tensors.view<Logit, Target>();
    auto* out = static_cast<Real*>(divergences.mutable_data_ptr());
    auto* first_logit = static_cast<Logit*>(logits.mutable_data_ptr());
    torch::stable::parallel_for(0, rows.count, row_grain(rows.width), [&](int64_t begin, int64_t end) {
      Scratch<Real> scratch(rows.width);
      for (int64_t m = begin; m < end; ++m) {
        Logit* row = first_logit + m * rows.logits_stride;
        const int64_t target_row = rows.index ? rows.index[m] : m;
        if (rows.index && m + 1 < end && rows.index[m + 1] != kIgnored) {
          prefetch(rows.targets + rows.index[m + 1] * rows.targets_stride, rows.width * sizeof(Target));
        }
        if (target_row == kIgnored) {
          std::fill_n(row, rows.width, Logit(0));
          out[m] = 0;
        } else {
          out[m] = residual_of_row(row, rows.targets + target_row * rows.targets_stride, rows.width, scratch);
        }
      }
    });
  });
  return divergences;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fashionbert_fast, CPU, m) { m.impl("patch_kld_residual_", TORCH_BOX(&residual)); }

}  // namespace fashionbert
