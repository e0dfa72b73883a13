// The adaptive loss of FashionBERT (Gao et al., SIGIR 2020; closed form as in the released code), host and device.
//
//   g = softmax(L),  w_i = r_i / sum_j r_j  with  r_i = 1 / (alpha T - g_i^2),  loss = sum_i w_i L_i
//
// It minimises 1/2 sum_i (alpha T - g_i^2) w_i^2 subject to sum_i w_i = 1. T is small: one thread does it all. Loops
// run to the constant kMaxTasks under a guard, so that they unroll and every array lives in registers.
#pragma once

#include <cmath>

#include "common/macros.h"

namespace fashionbert {

constexpr int kMaxTasks = 8;

#define FB_FOR_TASKS(i, tasks)                  \
  FB_UNROLL for (int i = 0; i < kMaxTasks; ++i) \
    if (i < (tasks))

// g, r and w of T losses; every array holds kMaxTasks entries of which the first T are used.
template <typename Real>
struct AdaptiveWeights {
  Real g[kMaxTasks];
  Real r[kMaxTasks];
  Real w[kMaxTasks];
};

template <typename Real>
FB_HOST_DEVICE AdaptiveWeights<Real> adaptive_weights(const Real* losses, int tasks, Real alpha) {
  AdaptiveWeights<Real> a;
  Real largest = losses[0];
  FB_FOR_TASKS(i, tasks) largest = losses[i] > largest ? losses[i] : largest;
  Real sum = Real(0);
  FB_FOR_TASKS(i, tasks) {
    a.g[i] = std::exp(losses[i] - largest);
    sum += a.g[i];
  }
  Real total = Real(0);
  FB_FOR_TASKS(i, tasks) {
    a.g[i] /= sum;
    a.r[i] = Real(1) / (alpha * Real(tasks) - a.g[i] * a.g[i]);
    total += a.r[i];
  }
  FB_FOR_TASKS(i, tasks) a.w[i] = a.r[i] / total;
  return a;
}

template <typename Real>
FB_HOST_DEVICE Real adaptive_loss_forward(const Real* losses, int tasks, Real alpha, Real* weights) {
  const AdaptiveWeights<Real> a = adaptive_weights(losses, tasks, alpha);
  Real loss = Real(0);
  FB_FOR_TASKS(i, tasks) {
    weights[i] = a.w[i];
    loss += a.w[i] * losses[i];
  }
  return loss;
}

// grad_losses from the gradients of both outputs. With v_i = grad_loss L_i + grad_weights_i and vbar = sum_j v_j w_j:
//   dg_i = 2 g_i r_i w_i (v_i - vbar),   dL_k = grad_loss w_k + g_k (dg_k - sum_j g_j dg_j)
// Detached weights are constants: only the first term of dL_k remains.
template <typename Real>
FB_HOST_DEVICE void adaptive_loss_backward(Real grad_loss, const Real* grad_weights, const Real* losses, int tasks,
                                           Real alpha, bool detach_weights, Real* grad_losses) {
  const AdaptiveWeights<Real> a = adaptive_weights(losses, tasks, alpha);
  FB_FOR_TASKS(k, tasks) grad_losses[k] = grad_loss * a.w[k];
  if (detach_weights) return;
  Real vbar = Real(0);
  FB_FOR_TASKS(i, tasks) vbar += (grad_loss * losses[i] + grad_weights[i]) * a.w[i];
  Real dg[kMaxTasks] = {};
  Real inner = Real(0);
  FB_FOR_TASKS(i, tasks) {
    const Real v = grad_loss * losses[i] + grad_weights[i];
    dg[i] = Real(2) * a.g[i] * a.r[i] * a.w[i] * (v - vbar);
    inner += a.g[i] * dg[i];
  }
  FB_FOR_TASKS(k, tasks) grad_losses[k] += a.g[k] * (dg[k] - inner);
}

}  // namespace fashionbert
