// The smallest point of the convex hull of at most three gradients, from their Gram matrix G; host and device.
//
//   argmin_w w' G w  subject to  w >= 0, sum_i w_i = 1          (MGDA: Desideri 2012; Sener & Koltun 2018)
//
// The minimiser lies inside one face of the simplex (a vertex, an edge or the triangle) and is stationary there, so
// trying every face is exact. All of it is double: the differences of near-equal gradients cancel. One thread does it;
// indices are constants once inlined, so that everything lives in registers.
#pragma once

#include <cmath>

#include "common/macros.h"

namespace fashionbert {

constexpr int kMaxMinNormTasks = 3;

struct MinNorm {
  double G[kMaxMinNormTasks][kMaxMinNormTasks];
  double w[kMaxMinNormTasks];  // the best face so far
  double value;                // its w' G w
};

// Keeps the candidate if it is better. The comparison is false for NaN, so a singular face never wins.
FB_HOST_DEVICE void offer(MinNorm& m, double w0, double w1, double w2) {
  const double value = w0 * (w0 * m.G[0][0] + 2 * (w1 * m.G[0][1] + w2 * m.G[0][2])) +
                       w1 * (w1 * m.G[1][1] + 2 * w2 * m.G[1][2]) + w2 * w2 * m.G[2][2];
  if (!(value < m.value)) return;
  m.value = value;
  m.w[0] = w0;
  m.w[1] = w1;
  m.w[2] = w2;
}

// The share of task i on the edge between tasks i and j, its two vertices included.
FB_HOST_DEVICE double edge_share(const MinNorm& m, int i, int j) {
  const double curvature = m.G[i][i] - 2 * m.G[i][j] + m.G[j][j];
  const double share = (m.G[j][j] - m.G[i][j]) / curvature;
  if (!(curvature > 0)) return 0.5;
  return share < 0 ? 0.0 : (share > 1 ? 1.0 : share);
}

// The shares a of task i and b of task j where |g_k + a (g_i - g_k) + b (g_j - g_k)|^2 is stationary (Cramer's rule);
// false where that point is outside the triangle or not unique: then an edge is at least as good.
FB_HOST_DEVICE bool triangle_shares(const MinNorm& m, int i, int j, int k, double& a, double& b) {
  const double e_ii = m.G[i][i] - 2 * m.G[i][k] + m.G[k][k];
  const double e_jj = m.G[j][j] - 2 * m.G[j][k] + m.G[k][k];
  const double e_ij = m.G[i][j] - m.G[i][k] - m.G[j][k] + m.G[k][k];
  const double r_i = m.G[k][k] - m.G[i][k], r_j = m.G[k][k] - m.G[j][k];
  const double determinant = e_ii * e_jj - e_ij * e_ij;
  a = (r_i * e_jj - r_j * e_ij) / determinant;
  b = (r_j * e_ii - r_i * e_ij) / determinant;
  return determinant > 0 && a >= 0 && b >= 0 && 1 - a - b >= 0;
}

FB_HOST_DEVICE void offer_triangle(MinNorm& m) {
  double a, b;
  // The smallest gradient is the origin of the differences: the weights of gradients many orders larger keep their
  // relative accuracy then, and 1 - a - b loses none that matters.
  if (m.G[0][0] <= m.G[1][1] && m.G[0][0] <= m.G[2][2]) {
    if (triangle_shares(m, 1, 2, 0, a, b)) offer(m, 1 - a - b, a, b);
  } else if (m.G[1][1] <= m.G[2][2]) {
    if (triangle_shares(m, 0, 2, 1, a, b)) offer(m, a, 1 - a - b, b);
  } else {
    if (triangle_shares(m, 0, 1, 2, a, b)) offer(m, a, b, 1 - a - b);
  }
}

// weights of the row-major tasks x tasks matrix `gram` (entry i, j at i * row + j * column), 1 <= tasks <= 3. Equal
// weights win ties, so gradients that are all zero or all equal give 1 / tasks. Anything not finite gives NaN.
template <typename Storage>
FB_HOST_DEVICE void min_norm_weights(const Storage* gram, long row, long column, int tasks, double* weights) {
  MinNorm m;
  double largest = 0;
  bool finite = true;
  FB_UNROLL for (int i = 0; i < kMaxMinNormTasks; ++i) {
    FB_UNROLL for (int j = 0; j < kMaxMinNormTasks; ++j) {
      m.G[i][j] = 0;
      if (i >= tasks || j >= tasks) continue;
      m.G[i][j] =
          0.5 * (static_cast<double>(gram[i * row + j * column]) + static_cast<double>(gram[j * row + i * column]));
      const double size = std::fabs(m.G[i][j]);
      finite = finite && size <= 1.7976931348623157e308;
      largest = size > largest ? size : largest;
    }
  }
  if (largest > 0) {
    FB_UNROLL for (int i = 0; i < kMaxMinNormTasks; ++i) {
      FB_UNROLL for (int j = 0; j < kMaxMinNormTasks; ++j)
        m.G[i][j] /= largest;
    }
  }
  const double equal = 1.0 / tasks;
  m.value = 1e300;
  offer(m, equal, tasks > 1 ? equal : 0.0, tasks > 2 ? equal : 0.0);
  if (tasks > 1) {
    const double share = edge_share(m, 0, 1);
    offer(m, share, 1 - share, 0);
  }
  if (tasks > 2) {
    const double of_0 = edge_share(m, 0, 2), of_1 = edge_share(m, 1, 2);
    offer(m, of_0, 0, 1 - of_0);
    offer(m, 0, of_1, 1 - of_1);
    offer_triangle(m);
  }
  FB_UNROLL for (int i = 0; i < kMaxMinNormTasks; ++i) {
    if (i < tasks) weights[i] = finite ? m.w[i] : NAN;
  }
}

}  // namespace fashionbert
