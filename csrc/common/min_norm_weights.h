// The smallest point of the convex hull of at most four gradients, from their Gram matrix G; host and device.
//
//   argmin_w w' G w  subject to  w >= 0, sum_i w_i = 1          (MGDA: Desideri 2012; Sener & Koltun 2018)
//
// The minimiser lies inside one face of the simplex (a vertex, an edge, a triangle or the tetrahedron) and is
// stationary there, so trying every face is exact. All of it is double: the differences of near-equal gradients cancel.
// One thread does it; of at most three tasks indices are constants once inlined: everything lives in registers.
#pragma once

#include <cmath>

#include "common/macros.h"

namespace fashionbert {

constexpr int kMaxMinNormTasks = 4, kTriangle = 3;

struct MinNorm {
  double G[kTriangle][kTriangle];
  double w[kTriangle];  // the best face so far
  double value;         // its w' G w
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

// `min_norm_weights` below of at most three tasks.
template <typename Storage>
FB_HOST_DEVICE void min_norm_of_three(const Storage* gram, long row, long column, int tasks, double* weights) {
  MinNorm m;
  double largest = 0;
  bool finite = true;
  FB_UNROLL for (int i = 0; i < kTriangle; ++i) {
    FB_UNROLL for (int j = 0; j < kTriangle; ++j) {
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
    FB_UNROLL for (int i = 0; i < kTriangle; ++i) {
      FB_UNROLL for (int j = 0; j < kTriangle; ++j)
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
  FB_UNROLL for (int i = 0; i < kTriangle; ++i) {
    if (i < tasks) weights[i] = finite ? m.w[i] : NAN;
  }
}

// The point inside the tetrahedron where |g_k + sum_i s_i (g_i - g_k)|^2 is stationary, i over the three others of k,
// by a Cholesky factorisation (which takes no harm from rows of very different size) without its roots; false where
// that point lies outside or is not unique: then a triangle is at least as good.
template <int k>
FB_HOST_DEVICE bool tetrahedron_weights(const double (&G)[4][4], double (&w)[4]) {
  double L[kTriangle][kTriangle], pivot[kTriangle], s[kTriangle];
  FB_UNROLL for (int a = 0; a < kTriangle; ++a) {
    const int i = a + (a >= k);
    s[a] = G[k][k] - G[i][k];
    FB_UNROLL for (int b = 0; b <= a; ++b) {
      const int j = b + (b >= k);
      double entry = G[i][j] - G[i][k] - G[j][k] + G[k][k];
      FB_UNROLL for (int c = 0; c < b; ++c)
        entry -= L[a][c] * L[b][c] * pivot[c];
      if (a == b)
        pivot[a] = entry;
      else
        L[a][b] = entry / pivot[b];
    }
    if (!(pivot[a] > 0)) return false;
    FB_UNROLL for (int b = 0; b < a; ++b)
      s[a] -= L[a][b] * s[b];
  }
  double rest = 1;
  bool inside = true;
  FB_UNROLL for (int a = kTriangle - 1; a >= 0; --a) {
    s[a] /= pivot[a];
    FB_UNROLL for (int b = a + 1; b < kTriangle; ++b)
      s[a] -= L[b][a] * s[b];
    w[a + (a >= k)] = s[a];
    rest -= s[a];
    inside = inside && s[a] >= 0;
  }
  w[k] = rest;
  return inside && rest >= 0;
}

FB_HOST_DEVICE double squared_norm(const double (&G)[4][4], const double (&w)[4]) {
  double value = 0;
  FB_UNROLL for (int i = 0; i < 4; ++i) {
    FB_UNROLL for (int j = 0; j < 4; ++j)
      value += w[i] * w[j] * G[i][j];
  }
  return value;
}

FB_HOST_DEVICE void keep_smaller(const double (&G)[4][4], const double (&w)[4], double (&best)[4], double& least) {
  const double value = squared_norm(G, w);
  if (!(value < least)) return;
  least = value;
  FB_UNROLL for (int i = 0; i < 4; ++i)
    best[i] = w[i];
}

// The same of four: equal weights, the best point of each of the four triangles (their edges and vertices included),
// and the tetrahedron's.
FB_HOST_DEVICE void min_norm_of_four(const double (&G)[4][4], double (&best)[4]) {
  FB_UNROLL for (int i = 0; i < 4; ++i)
    best[i] = 0.25;
  double least = squared_norm(G, best);
  FB_UNROLL for (int vertex = 0; vertex < 4; ++vertex) {  // the triangle opposite to it
    double face[kTriangle * kTriangle], shares[kTriangle], w[4] = {};
    FB_UNROLL for (int a = 0; a < kTriangle; ++a) {
      FB_UNROLL for (int b = 0; b < kTriangle; ++b)
        face[a * kTriangle + b] = G[a + (a >= vertex)][b + (b >= vertex)];
    }
    min_norm_of_three(face, kTriangle, 1, kTriangle, shares);
    FB_UNROLL for (int a = 0; a < kTriangle; ++a)
      w[a + (a >= vertex)] = shares[a];
    keep_smaller(G, w, best, least);
  }
  // The smallest gradient, as of `offer_triangle`.
  double w[4] = {};
  const bool of_2_or_3 = (G[2][2] < G[3][3] ? G[2][2] : G[3][3]) < (G[0][0] < G[1][1] ? G[0][0] : G[1][1]);
  const bool inside = of_2_or_3 ? (G[3][3] < G[2][2] ? tetrahedron_weights<3>(G, w) : tetrahedron_weights<2>(G, w))
                                : (G[1][1] < G[0][0] ? tetrahedron_weights<1>(G, w) : tetrahedron_weights<0>(G, w));
  if (inside) keep_smaller(G, w, best, least);
}

// weights of the row-major tasks x tasks matrix `gram` (entry i, j at i * row + j * column), 1 <= tasks <= 4. Equal
// weights win ties, so gradients that are all zero or all equal give 1 / tasks. Anything not finite gives NaN.
template <typename Storage>
FB_HOST_DEVICE void min_norm_weights(const Storage* gram, long row, long column, int tasks, double* weights) {
  if (tasks <= kTriangle) return min_norm_of_three(gram, row, column, tasks, weights);
  double G[4][4], best[4], largest = 0;
  bool finite = true;
  FB_UNROLL for (int i = 0; i < 4; ++i) {
    FB_UNROLL for (int j = 0; j < 4; ++j) {
      G[i][j] =
          0.5 * (static_cast<double>(gram[i * row + j * column]) + static_cast<double>(gram[j * row + i * column]));
      const double size = std::fabs(G[i][j]);
      finite = finite && size <= 1.7976931348623157e308;
      largest = size > largest ? size : largest;
    }
  }
  if (largest > 0) {
    FB_UNROLL for (int i = 0; i < 4; ++i) {
      FB_UNROLL for (int j = 0; j < 4; ++j)
        G[i][j] /= largest;
    }
  }
  min_norm_of_four(G, best);
  FB_UNROLL for (int i = 0; i < 4; ++i)
    weights[i] = finite ? best[i] : NAN;
}

}  // namespace fashionbert
