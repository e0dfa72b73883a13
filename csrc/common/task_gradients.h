// The two passes of the task-gradient gate over the task gradients at the shared hidden states; host and device. The
// first takes the products of every two, the second their weighted sum.
#pragma once

#include "common/macros.h"

namespace fashionbert {

constexpr int kLeastGateTasks = 3, kMostGateTasks = 4;
template <int kTasks>
constexpr int kProducts = kTasks * (kTasks + 1) / 2;  // the upper triangle of the Gram matrix, row by row

// One number (or vector of numbers, a vector extension type on CPU) of each task's gradient; or its address.
template <typename Value, int kTasks>
struct OfTasks {
  Value of[kTasks];
};

// Running sums of the products of every two tasks' numbers.
template <typename Value, int kTasks>
struct Products {
  Value sums[kProducts<kTasks>];

  FB_HOST_DEVICE void add(const OfTasks<Value, kTasks>& values) {
    int product = 0;
    FB_UNROLL for (int i = 0; i < kTasks; ++i) {
      FB_UNROLL for (int j = i; j < kTasks; ++j)
        sums[product++] += values.of[i] * values.of[j];
    }
  }
};

// Writes one of the products to its one or two places in the row-major Gram matrix.
template <int kTasks>
FB_HOST_DEVICE void store_product(int product, double sum, float* gram) {
  int row = 0, column = product;
  while (column >= kTasks) column -= kTasks - ++row;
  gram[row * kTasks + column] = static_cast<float>(sum);
  gram[column * kTasks + row] = static_cast<float>(sum);
}

template <typename Value, typename Weight, int kTasks>
FB_HOST_DEVICE Value mixed(const OfTasks<Value, kTasks>& values, const OfTasks<Weight, kTasks>& weights) {
  Value sum = weights.of[0] * values.of[0];
  FB_UNROLL for (int i = 1; i < kTasks; ++i)
    sum = sum + weights.of[i] * values.of[i];
  return sum;
}

}  // namespace fashionbert
