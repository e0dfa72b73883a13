// The two passes of the task-gradient gate over the three task gradients a, b, c at the shared hidden states; host and
// device. The first takes their six dot products, the second their weighted sum.
#pragma once

#include "common/macros.h"

namespace fashionbert {

constexpr int kGateTasks = 3;
constexpr int kProducts = 6;  // the upper triangle of the Gram matrix: aa ab ac bb bc cc

// Running sums of the six products. Value is a number, or a vector of numbers (a vector extension type on CPU).
template <typename Value>
struct Products {
  Value sums[kProducts];

  FB_HOST_DEVICE void add(Value a, Value b, Value c) {
    sums[0] += a * a;
    sums[1] += a * b;
    sums[2] += a * c;
    sums[3] += b * b;
    sums[4] += b * c;
    sums[5] += c * c;
  }
};

// Writes one of the six products to its one or two places in the row-major 3 x 3 Gram matrix.
FB_HOST_DEVICE void store_product(int product, double sum, float* gram) {
  const int row = product < 3 ? 0 : (product < 5 ? 1 : 2);
  const int column = product < 3 ? product : (product < 5 ? product - 2 : 2);
  gram[row * kGateTasks + column] = static_cast<float>(sum);
  gram[column * kGateTasks + row] = static_cast<float>(sum);
}

template <typename Value, typename Weight>
FB_HOST_DEVICE Value mixed(Value a, Value b, Value c, Weight w_a, Weight w_b, Weight w_c) {
  return w_a * a + w_b * b + w_c * c;
}

}  // namespace fashionbert
