// masked_patch_embed on CPU: the unmasked rows, and only those, go through the matrix product in chunks: gathered
// (converted, dequantised, dropped) into a scratch, multiplied, and finished with position, segment, LayerNorm and
// dropout while the product is still warm. The backward does LayerNorm and every parameter's sum in one pass, and
// multiplies the weight gradient in blocks of feature columns, each a single product over all rows, so that nothing
// narrow is accumulated.
//
// Threads take whole chunks and blocks, and multiply them alone. Products that all threads share would meet at barriers
// by the dozen, and where the machine has anything else to do each barrier waits for whichever thread was set aside.
//
// Long: forward and backward share the way features are gathered and dropped, and the plan that splits them up.
//
// The same bits on any number of threads: chunks and blocks are cut by the sizes of the arguments alone, and sums over
// the rows are taken position by position, in blocks of a fixed number of pairs.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu/feature_rows.h"
#include "cpu/matrix_product.h"

namespace fashionbert {
namespace {

constexpr int64_t kChunk = 512;         // rows multiplied at once, at most
constexpr int64_t kLeastChunk = 64;     // fewer would pay more for packing the weight than for multiplying
constexpr int64_t kChunks = 4;          // a multiple of it where there are rows enough: even shares for 2 and 4 threads
constexpr int64_t kBlockColumns = 256;  // of the weight gradient, multiplied at once: whole blocks of dropout
// Row counts are padded with zero rows to a multiple of this. The number of masked patches changes each step, and
// oneDNN compiles a kernel for each shape it meets.
constexpr int64_t kPadding = 16;
constexpr int64_t kGrain = 16;       // rows a thread, at least
constexpr int64_t kSumPairs = 16;    // rows summed before they join a longer sum, which errs less than one long sum
constexpr int64_t kTransposed = 32;  // side of a block of a transposition

// Calls body.template operator()<Storage, Product>(): a product of `Storage` is computed from `Product`, which is float
// where the processor would emulate the arithmetic of `Storage`.
template <typename Body>
void dispatch_products(ScalarType dtype, Body&& body) {
  dispatch_floating(dtype, "masked_patch_embed", [&]<typename Storage>() {
    constexpr bool kHalf = std::is_same_v<Storage, c10::Half>;
    if constexpr (std::is_same_v<Storage, c10::BFloat16>) {
      if (!bfloat16_is_native()) return body.template operator()<Storage, float>();
    }
    body.template operator()<Storage, std::conditional_t<kHalf, float, Storage>>();
  });
}

template <typename T>
constexpr ScalarType kDtype = ScalarType::Float;
template <>
constexpr ScalarType kDtype<double> = ScalarType::Double;
template <>
constexpr ScalarType kDtype<c10::BFloat16> = ScalarType::BFloat16;

int64_t parts_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

int64_t padded(int64_t rows) { return parts_of(rows, kPadding) * kPadding; }

// Rows multiplied at once, the last chunk's being the rest: by their number alone, not by that of the threads.
int64_t chunk_rows(int64_t rows) {
  const int64_t least = parts_of(rows, kChunk), even = parts_of(least, kChunks) * kChunks;
  const int64_t chunks = std::min(even, std::max(least, rows / kLeastChunk));
  return padded(parts_of(rows, std::max<int64_t>(chunks, 1)));
}

template <typename T>
T* data_of(Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}
template <typename T>
const T* data_of(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

using Row = const int64_t*;

void check_rows(const char* name, Row rows, int64_t count, int64_t most) {
  for (int64_t i = 0; i < count; ++i) {
    STD_TORCH_CHECK(rows[i] >= 0 && rows[i] <= most, "masked_patch_embed: ", name, "[", i, "] is ", rows[i],
                    " but must be 0 to ", most);
  }
}

// The arguments that forward and backward share, checked and contiguous.
struct Inputs {
  Tensor features, mask, weight, position, segment, ln_weight;
  std::optional<Tensor> image_index, scale, patch_row;
  int64_t pairs, patches, width, hidden, rows;
  FeatureRows feature_rows;
  Dropout hidden_dropout;
  bool by_onednn;  // float32 products
  std::vector<int64_t> unmasked;

  // The row of the result that holds row `row`.
  int64_t destination(int64_t row) const {
    return patch_row ? data_of<int64_t>(*patch_row)[row / patches] + row % patches : row;
  }
  bool masked(int64_t row) const { return data_of<bool>(mask)[row]; }
  int64_t kept() const { return static_cast<int64_t>(unmasked.size()); }
};

std::optional<Tensor> contiguous(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional<Tensor>(torch::stable::contiguous(*tensor)) : std::nullopt;
}

// The Python function names what is wrong; this keeps whoever calls the operator itself inside the tensors.
void check_sizes(const Inputs& in, int64_t images) {
  const ScalarType dtype = in.weight.scalar_type();
  STD_TORCH_CHECK(in.mask.scalar_type() == ScalarType::Bool, "masked_patch_embed: patch_mask must be bool");
  for (const Tensor* tensor : {&in.position, &in.segment, &in.ln_weight}) {
    STD_TORCH_CHECK(
        tensor->numel() == (tensor == &in.position ? in.patches : 1) * in.hidden && tensor->scalar_type() == dtype,
        "masked_patch_embed: position must be (P, H), segment and LayerNorm (H,), of the weight's dtype");
  }
  for (const auto* rows : {&in.image_index, &in.patch_row}) {
    STD_TORCH_CHECK(!*rows || ((*rows)->numel() == in.pairs && (*rows)->scalar_type() == ScalarType::Long),
                    "masked_patch_embed: image_index and patch_row must be int64, one a pair");
  }
  STD_TORCH_CHECK(
      !in.scale || (in.scale->numel() == images * in.patches && in.scale->scalar_type() == ScalarType::Float),
      "masked_patch_embed: scale must be float32, one a row of features");
}

Inputs checked_inputs(Tensor features, Tensor mask, Tensor weight, Tensor position, Tensor segment, Tensor ln_weight,
                      std::optional<Tensor> image_index, std::optional<Tensor> scale, double feature_dropout,
                      double hidden_dropout, const std::optional<Tensor>& seed, int64_t site,
                      std::optional<Tensor> patch_row) {
  STD_TORCH_CHECK(features.dim() == 3 && mask.dim() == 2 && weight.dim() == 2 && mask.size(1) == features.size(1) &&
                      weight.size(1) == features.size(2),
                  "masked_patch_embed: features must have shape (I, P, D), patch_mask (B, P), weight (H, D)");
  const int64_t images = features.size(0);
  Inputs in{features.stride(2) == 1 ? features : torch::stable::contiguous(features),
            torch::stable::contiguous(mask),
            torch::stable::contiguous(weight),
            torch::stable::contiguous(position),
            torch::stable::contiguous(segment),
            torch::stable::contiguous(ln_weight),
            contiguous(image_index),
            contiguous(scale),
            contiguous(patch_row),
            mask.size(0),
            mask.size(1),
            weight.size(1),
            weight.size(0),
            mask.size(0) * mask.size(1),
            {},
            {},
            float32_by_onednn(),
            {}};
  check_sizes(in, images);
  if (in.image_index) {
    check_rows("image_index", data_of<int64_t>(*in.image_index), in.pairs, images - 1);
  } else {
    STD_TORCH_CHECK(images == in.pairs, "masked_patch_embed: without image_index, one image a pair");
  }
  STD_TORCH_CHECK(seed || (feature_dropout == 0 && hidden_dropout == 0), "masked_patch_embed: dropout needs a seed");
  const uint64_t key = seed ? static_cast<uint64_t>(*data_of<int64_t>(*seed)) : 0;
  in.feature_rows = {in.features.const_data_ptr(),
                     in.features.stride(0),
                     in.features.stride(1),
                     in.image_index ? data_of<int64_t>(*in.image_index) : nullptr,
                     in.scale ? data_of<float>(*in.scale) : nullptr,
                     in.patches,
                     in.width,
                     make_dropout(key, static_cast<uint32_t>(site), feature_dropout)};
  in.hidden_dropout = make_dropout(key, static_cast<uint32_t>(site + 1), hidden_dropout);
  for (int64_t row = 0; row < in.rows; ++row) {
    if (!in.masked(row)) in.unmasked.push_back(row);
  }
  return in;
}

template <typename Real, typename Storage>
std::vector<Real> widened_vector(const Tensor& tensor) {
  std::vector<Real> wide(tensor.numel());
  convert(data_of<Storage>(tensor), static_cast<int>(wide.size()), wide.data());
  return wide;
}

// position + segment of each patch, (P, H): what a masked patch is before LayerNorm.
template <typename Real, typename Storage>
std::vector<Real> base_of(const Inputs& in) {
  std::vector<Real> base = widened_vector<Real, Storage>(in.position);
  const std::vector<Real> segment = widened_vector<Real, Storage>(in.segment);
  for (int64_t patch = 0; patch < in.patches; ++patch) {
    FB_SIMD()
    for (int64_t i = 0; i < in.hidden; ++i) base[patch * in.hidden + i] += segment[i];
  }
  return base;
}

// Features [first column, + columns) of the unmasked rows [begin, end), then zero rows up to `padded_end`.
template <typename To>
void gather(const Inputs& in, int64_t begin, int64_t end, int64_t padded_end, int64_t first, int64_t columns, To* to) {
  dispatch_features<To>(in.features.scalar_type(), [&]<typename Feature>() {
    for (int64_t slot = begin; slot < end; ++slot) {
      read_features<Feature>(in.feature_rows, in.unmasked[slot], first, columns, to + (slot - begin) * columns);
    }
  });
  std::memset(static_cast<void*>(to + (end - begin) * columns), 0, (padded_end - end) * columns * sizeof(To));
}

// `weight` in the type its product takes, outside autograd; it lives as long as `owner`.
template <typename Product>
Tensor product_weight(const Inputs& in, Tensor& owner) {
  owner = in.weight.scalar_type() == kDtype<Product> ? in.weight : torch::stable::to(in.weight, kDtype<Product>);
  return matrix_at(data_of<Product>(std::as_const(owner)), in.hidden, in.width, owner);
}

template <typename Real>
struct RowStats {
  Real mean, rstd;
};

// Forward -------------------------------------------------------------------------------------------------------------
// LayerNorm of the row in `x`, to `x`. The mean leaves first, so that a far-off one costs the variance no digits.
template <typename Real>
RowStats<Real> normalise(int64_t count, Real eps, const Real* weight, const Real* bias, Real* x) {
  Real sum = 0, squares = 0;
  FB_SIMD(reduction(+ : sum))
  for (int64_t i = 0; i < count; ++i) sum += x[i];
  const Real mean = sum / static_cast<Real>(count);
  FB_SIMD(reduction(+ : squares))
  for (int64_t i = 0; i < count; ++i) squares += (x[i] - mean) * (x[i] - mean);
  const Real rstd = 1 / std::sqrt(squares / static_cast<Real>(count) + eps);
  FB_SIMD()
  for (int64_t i = 0; i < count; ++i) x[i] = (x[i] - mean) * rstd * weight[i] + bias[i];
  return {mean, rstd};
}

template <typename Storage, typename Product>
struct Forward {
  using Real = compute_t<Storage>;

  const Inputs& in;
  Real eps;
  std::vector<Real> base, ln_weight, ln_bias;
  Storage *out, *projection;
  RowStats<Real>* stats;

  // Rows [begin, end), of which the unmasked have their products in `products`, one after the other.
  void finish(int64_t begin, int64_t end, const Product* products) const {
    std::vector<Real> x(in.hidden);
    for (int64_t row = begin; row < end; ++row) {
      finish_row(row, in.masked(row) ? nullptr : products, x.data());
      if (!in.masked(row)) products += in.hidden;
    }
  }

  void finish_row(int64_t row, const Product* product, Real* x) const {
    const int H = static_cast<int>(in.hidden);
    const Real* start = base.data() + row % in.patches * H;
    Storage* kept = projection + row * H;
    if (product == nullptr) {
      std::memcpy(x, start, H * sizeof(Real));
      std::memset(static_cast<void*>(kept), 0, H * sizeof(Storage));
    } else {
      convert(product, H, kept);
      convert(kept, H, x);
      FB_SIMD()
      for (int i = 0; i < H; ++i) x[i] += start[i];
    }
    stats[row] = normalise<Real>(H, eps, ln_weight.data(), ln_bias.data(), x);
    apply_dropout(in.hidden_dropout, 0, static_cast<uint32_t>(row), H, x);
    convert(x, H, out + in.destination(row) * H);
  }

  void run() const {
    if (in.kept() == 0 || in.hidden == 0 || in.width == 0) return no_products();
    Tensor owner = in.weight;
    const Tensor weight_DH = torch::stable::transpose(product_weight<Product>(in, owner), 0, 1);
    const int64_t rows = chunk_rows(in.kept());
    parallel_products(parts_of(in.kept(), rows), [&](int64_t first_chunk, int64_t last_chunk) {
      const auto scratch = std::make_unique_for_overwrite<Product[]>(rows * in.width);
      for (int64_t chunk = first_chunk; chunk < last_chunk; ++chunk) {
        const int64_t begin = chunk * rows, end = std::min(begin + rows, in.kept()), count = padded(end - begin);
        gather(in, begin, end, begin + count, 0, in.width, scratch.get());
        const Tensor product =
            matrix_product(matrix_at(scratch.get(), count, in.width, owner), weight_DH, in.by_onednn);
        finish(begin == 0 ? 0 : in.unmasked[begin], end == in.kept() ? in.rows : in.unmasked[end],
               data_of<Product>(product));
      }
    });
  }

  // Nothing to multiply: the products are zeros.
  void no_products() const {
    const std::vector<Product> zeros(in.kept() * in.hidden);
    finish(0, in.rows, zeros.data());
  }
};

// The text's rows, and zeros where neither a text nor a patch goes; checks that no row is written twice.
template <typename Storage>
void pack_text(const Inputs& in, const Tensor& text, const Tensor& text_row, int64_t packed_rows, Storage* out) {
  const auto* from = data_of<Storage>(text);
  const Row rows = data_of<int64_t>(text_row);
  check_rows("text_row", rows, text.size(0), packed_rows - 1);
  check_rows("patch_row", data_of<int64_t>(*in.patch_row), in.pairs, packed_rows - in.patches);
  std::vector<char> taken(packed_rows);
  const auto take = [&](int64_t row) {
    STD_TORCH_CHECK(!taken[row], "masked_patch_embed: row ", row, " of the packed sequence is given twice");
    taken[row] = 1;
  };
  for (int64_t n = 0; n < text.size(0); ++n) take(rows[n]);
  for (int64_t row = 0; row < in.rows; ++row) take(in.destination(row));
  const int64_t H = in.hidden;
  for (int64_t row = 0; row < packed_rows; ++row) {
    if (!taken[row]) std::memset(static_cast<void*>(out + row * H), 0, H * sizeof(Storage));
  }
  torch::stable::parallel_for(0, text.size(0), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      std::memcpy(static_cast<void*>(out + rows[n] * H), from + n * H, H * sizeof(Storage));
  });
}

std::tuple<Tensor, Tensor, Tensor> forward(Tensor features, Tensor mask, Tensor weight, Tensor position, Tensor segment,
                                           Tensor ln_weight, Tensor ln_bias, double eps,
                                           std::optional<Tensor> image_index, std::optional<Tensor> scale,
                                           double feature_dropout, double hidden_dropout, std::optional<Tensor> seed,
                                           int64_t site, std::optional<Tensor> text, std::optional<Tensor> text_row,
                                           std::optional<Tensor> patch_row, int64_t packed_rows) {
  const Inputs in = checked_inputs(features, mask, weight, position, segment, ln_weight, image_index, scale,
                                   feature_dropout, hidden_dropout, seed, site, patch_row);
  STD_TORCH_CHECK(text.has_value() == patch_row.has_value() && text.has_value() == text_row.has_value(),
                  "masked_patch_embed: text, text_row and patch_row go together");
  const int64_t H = in.hidden;
  STD_TORCH_CHECK(ln_bias.numel() == H && ln_bias.scalar_type() == weight.scalar_type() &&
                      (!text || (text->dim() == 2 && text->size(1) == H && text_row->numel() == text->size(0) &&
                                 text->scalar_type() == weight.scalar_type())),
                  "masked_patch_embed: ln_bias must be (H,), text (N, H), text_row (N,)");
  Tensor out = text ? torch::stable::new_empty(weight, {packed_rows, H})
                    : torch::stable::new_empty(weight, {in.pairs, in.patches, H});
  Tensor projection = torch::stable::new_empty(weight, {in.rows, H});
  Tensor stats = torch::stable::new_empty(
      weight, {in.rows, 2}, weight.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float);
  dispatch_products(weight.scalar_type(), [&]<typename Storage, typename Product>() {
    using Real = compute_t<Storage>;
    if (text) pack_text(in, *contiguous(text), *contiguous(text_row), packed_rows, data_of<Storage>(out));
    Forward<Storage, Product>{in,
                              static_cast<Real>(eps),
                              base_of<Real, Storage>(in),
                              widened_vector<Real, Storage>(in.ln_weight),
                              widened_vector<Real, Storage>(torch::stable::contiguous(ln_bias)),
                              data_of<Storage>(out),
                              data_of<Storage>(projection),
                              data_of<RowStats<Real>>(stats)}
        .run();
  });
  return {out, projection, stats};
}

// Backward ------------------------------------------------------------------------------------------------------------
// Sums over the pairs of one position, in two levels.
template <typename Real>
struct PositionSums {
  enum { kPosition, kWeight, kBias, kCount };
  int64_t hidden, pending = 0;
  std::vector<Real> block;
  Real* total;  // (kCount, H)

  PositionSums(int64_t hidden, Real* total) : hidden(hidden), block(kCount * hidden), total(total) {}
  Real* at(int which) { return block.data() + which * hidden; }
  void row_done() {
    if (++pending == kSumPairs) flush();
  }
  void flush() {
    FB_SIMD()
    for (int64_t i = 0; i < kCount * hidden; ++i) {
      total[i] += block[i];
      block[i] = 0;
    }
    pending = 0;
  }
};

template <typename Storage, typename Product>
struct Backward {
  using Real = compute_t<Storage>;
  static constexpr int kCount = PositionSums<Real>::kCount;

  const Inputs& in;
  std::vector<Real> base, ln_weight;
  const Storage *gradient, *projection;
  const RowStats<Real>* stats;
  std::vector<int64_t> slots;  // of each row among the unmasked

  // LayerNorm's gradient of every row: the unmasked ones' to `products`, all summed into `sums` (P, kCount, H).
  void rows(Product* products, Real* sums) const {
    torch::stable::parallel_for(0, in.patches, 1, [&](int64_t begin, int64_t end) {
      std::vector<Real> g(in.hidden), x(in.hidden);
      for (int64_t patch = begin; patch < end; ++patch) {
        PositionSums<Real> sum(in.hidden, sums + patch * kCount * in.hidden);
        for (int64_t row = patch; row < in.rows; row += in.patches) {
          one_row(row, g.data(), x.data(), sum, in.masked(row) ? nullptr : products + slots[row] * in.hidden);
          sum.row_done();
        }
        sum.flush();
      }
    });
  }

  void one_row(int64_t row, Real* g, Real* x, PositionSums<Real>& sum, Product* to) const {
    const int H = static_cast<int>(in.hidden);
    convert(gradient + in.destination(row) * H, H, g);
    apply_dropout(in.hidden_dropout, 0, static_cast<uint32_t>(row), H, g);
    convert(projection + row * H, H, x);
    const Real* start = base.data() + row % in.patches * H;
    const auto [mean, rstd] = stats[row];
    const Real* weight = ln_weight.data();
    Real *of_position = sum.at(sum.kPosition), *of_weight = sum.at(sum.kWeight), *of_bias = sum.at(sum.kBias);
    Real mean_g = 0, mean_gx = 0;
    FB_SIMD(reduction(+ : mean_g, mean_gx))
    for (int i = 0; i < H; ++i) {
      const Real normal = (x[i] + start[i] - mean) * rstd;
      of_weight[i] += g[i] * normal;
      of_bias[i] += g[i];
      x[i] = normal;
      g[i] *= weight[i];
      mean_g += g[i];
      mean_gx += g[i] * normal;
    }
    mean_g /= static_cast<Real>(H);
    mean_gx /= static_cast<Real>(H);
    FB_SIMD()
    for (int i = 0; i < H; ++i) {
      g[i] = (g[i] - mean_g - x[i] * mean_gx) * rstd;
      of_position[i] += g[i];
    }
    if (to != nullptr) convert(g, H, to);
  }
};

// The (P, kCount, H) sums to the gradients of position, segment, ln_weight and ln_bias.
template <typename Storage, typename Real>
void reduce_positions(const Inputs& in, const std::vector<Real>& sums, Storage* of_position, Storage* const of[3]) {
  constexpr int kCount = PositionSums<Real>::kCount;
  const int64_t H = in.hidden;
  std::vector<double> total(kCount * H);
  for (int64_t patch = 0; patch < in.patches; ++patch) {
    const Real* from = sums.data() + patch * kCount * H;
    convert(from, static_cast<int>(H), of_position + patch * H);
    for (int64_t i = 0; i < kCount * H; ++i) total[i] += from[i];
  }
  const std::vector<Real> narrowed(total.begin(), total.end());
  for (int which = 0; which < kCount; ++which) {
    convert(narrowed.data() + which * H, static_cast<int>(H), of[which]);
  }
}

// to (columns, rows) = from (rows, columns) transposed.
template <typename T>
void transpose_into(const T* from, int64_t rows, int64_t columns, T* to) {
  const int64_t blocks = parts_of(columns, kTransposed);
  torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin * kTransposed; first < std::min(end * kTransposed, columns); first += kTransposed) {
      const int64_t last = std::min(first + kTransposed, columns);
      for (int64_t top = 0; top < rows; top += kTransposed) {
        const int64_t bottom = std::min(top + kTransposed, rows);
        for (int64_t column = first; column < last; ++column) {
          for (int64_t row = top; row < bottom; ++row) to[column * rows + row] = from[row * columns + column];
        }
      }
    }
  });
}

// products^T @ features over the unmasked rows, in blocks of columns.
template <typename Storage, typename Product>
void weight_gradient(const Inputs& in, const Tensor& products, Storage* to) {
  const int64_t rows = products.size(0), H = in.hidden;
  if (rows == 0 || H == 0) {
    std::memset(static_cast<void*>(to), 0, H * in.width * sizeof(Storage));
    return;
  }
  Tensor transposed = matrix_at(data_of<Product>(products), rows, H, products);
  transposed = torch::stable::transpose(transposed, 0, 1);
  if (std::is_same_v<Product, c10::BFloat16> || in.by_onednn) {  // or oneDNN would lay it out anew for every block
    transposed = torch::stable::new_empty(products, {H, rows});
    transpose_into(data_of<Product>(products), rows, H, data_of<Product>(transposed));
  }
  parallel_products(parts_of(in.width, kBlockColumns), [&](int64_t first_block, int64_t last_block) {
    const auto scratch = std::make_unique_for_overwrite<Product[]>(rows * std::min(kBlockColumns, in.width));
    for (int64_t block = first_block; block < last_block; ++block) {
      const int64_t first = block * kBlockColumns, columns = std::min(kBlockColumns, in.width - first);
      gather(in, 0, in.kept(), rows, first, columns, scratch.get());
      const Tensor gradient =
          matrix_product(transposed, matrix_at(scratch.get(), rows, columns, products), in.by_onednn);
      for (int64_t h = 0; h < H; ++h) {
        const Product* from = data_of<Product>(gradient) + h * columns;
        convert(from, static_cast<int>(columns), to + h * in.width + first);
      }
    }
  });
}

// Adds columns [first, + columns) of the feature gradients of the unmasked rows [begin, end) to `sums` (I, P, D).
template <typename Product, typename Real>
void add_feature_gradients(const Inputs& in, int64_t begin, int64_t end, int64_t first, int64_t columns,
                           const Product* from, Real* sums) {
  alignas(64) float factors[kDropoutBlock];
  alignas(64) Real values[kDropoutBlock];
  std::fill(factors, factors + kDropoutBlock, 1.0f);
  for (int64_t slot = begin; slot < end; ++slot, from += columns) {
    const int64_t row = in.unmasked[slot];
    Real* to = sums + (in.feature_rows.image(row) * in.patches + row % in.patches) * in.width + first;
    for (int64_t i = 0; i < columns; i += kDropoutBlock) {
      const int width = static_cast<int>(std::min<int64_t>(kDropoutBlock, columns - i));
      if (in.feature_rows.dropout.active()) {
        const auto block = static_cast<uint32_t>((first + i) / kDropoutBlock);
        dropout_factors(in.feature_rows.dropout, 0, static_cast<uint32_t>(row), block, factors);
      }
      const Real* gradient = widened<Real>(from + i, width, values);
      FB_SIMD()
      for (int j = 0; j < width; ++j) to[i + j] += gradient[j] * static_cast<Real>(factors[j]);
    }
  }
}

// products @ weight, dropped and summed over the pairs of an image, in their order: threads take blocks of columns, so
// that two pairs of one image never meet.
template <typename Storage, typename Product>
void feature_gradient(const Inputs& in, const Tensor& products, Tensor& out) {
  using Real = compute_t<Storage>;
  std::vector<Real> sums(out.numel());
  Tensor owner = in.weight;
  Tensor weight = product_weight<Product>(in, owner);
  const int64_t H = in.hidden, rows = chunk_rows(in.kept());
  parallel_products(H > 0 ? parts_of(in.width, kBlockColumns) : 0, [&](int64_t first_block, int64_t last_block) {
    for (int64_t block = first_block; block < last_block; ++block) {
      const int64_t first = block * kBlockColumns, columns = std::min(kBlockColumns, in.width - first);
      const Tensor of_block = torch::stable::contiguous(torch::stable::narrow(weight, 1, first, columns));
      for (int64_t begin = 0; begin < in.kept(); begin += rows) {
        const int64_t end = std::min(begin + rows, in.kept());
        const Tensor chunk = matrix_at(data_of<Product>(products) + begin * H, padded(end - begin), H, products);
        const Tensor gradient = matrix_product(chunk, of_block, in.by_onednn);
        add_feature_gradients(in, begin, end, first, columns, data_of<Product>(gradient), sums.data());
      }
    }
  });
  dispatch_floating(out.scalar_type(), "masked_patch_embed", [&]<typename Feature>() {
    if constexpr (std::is_same_v<compute_t<Feature>, Real>) {
      auto* to = data_of<Feature>(out);
      torch::stable::parallel_for(0, out.numel(), 16384, [&](int64_t begin, int64_t end) {
        convert(sums.data() + begin, static_cast<int>(end - begin), to + begin);
      });
    }
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    Tensor grad_out, Tensor features, Tensor mask, Tensor weight, Tensor position, Tensor segment, Tensor ln_weight,
    std::optional<Tensor> image_index, std::optional<Tensor> scale, double feature_dropout, double hidden_dropout,
    std::optional<Tensor> seed, int64_t site, std::optional<Tensor> patch_row, Tensor projection, Tensor stats,
    bool features_gradient, bool weight_gradient_wanted) {
  const Inputs in = checked_inputs(features, mask, weight, position, segment, ln_weight, image_index, scale,
                                   feature_dropout, hidden_dropout, seed, site, patch_row);
  if (in.patch_row) check_rows("patch_row", data_of<int64_t>(*in.patch_row), in.pairs, grad_out.size(0) - in.patches);
  STD_TORCH_CHECK(grad_out.size(grad_out.dim() - 1) == in.hidden && projection.numel() == in.rows * in.hidden &&
                      stats.numel() == in.rows * 2 && grad_out.scalar_type() == weight.scalar_type(),
                  "masked_patch_embed_backward: projection and stats must be what masked_patch_embed returned");
  const auto like = [](const Tensor& tensor, bool wanted) {
    std::vector<int64_t> sizes;
    for (int64_t i = 0; i < tensor.dim(); ++i) sizes.push_back(tensor.size(i));
    return torch::stable::new_empty(tensor, wanted ? sizes : std::vector<int64_t>{0});
  };
  Tensor of_features = like(features, features_gradient), of_weight = like(weight, weight_gradient_wanted);
  Tensor of_position = like(position, true), of_segment = like(segment, true);
  Tensor of_ln_weight = like(ln_weight, true), of_ln_bias = like(ln_weight, true);
  const Tensor gradient = torch::stable::contiguous(grad_out);
  dispatch_products(weight.scalar_type(), [&]<typename Storage, typename Product>() {
    using Real = compute_t<Storage>;
    const int64_t H = in.hidden, rows = padded(in.kept());
    Tensor products = torch::stable::new_empty(weight, {rows, H}, kDtype<Product>);
    std::memset(data_of<char>(products) + in.kept() * H * sizeof(Product), 0, (rows - in.kept()) * H * sizeof(Product));
    std::vector<Real> sums(in.patches * PositionSums<Real>::kCount * H);
    Backward<Storage, Product> work{in,
                                    base_of<Real, Storage>(in),
                                    widened_vector<Real, Storage>(in.ln_weight),
                                    data_of<Storage>(gradient),
                                    data_of<Storage>(projection),
                                    data_of<RowStats<Real>>(stats),
                                    std::vector<int64_t>(in.rows)};
    for (int64_t slot = 0; slot < in.kept(); ++slot) work.slots[in.unmasked[slot]] = slot;
    work.rows(data_of<Product>(products), sums.data());
    Storage* const of[3] = {data_of<Storage>(of_segment), data_of<Storage>(of_ln_weight), data_of<Storage>(of_ln_bias)};
    reduce_positions(in, sums, data_of<Storage>(of_position), of);
    if (weight_gradient_wanted) weight_gradient<Storage, Product>(in, products, data_of<Storage>(of_weight));
    if (features_gradient) feature_gradient<Storage, Product>(in, products, of_features);
  });
  return {of_features, of_weight, of_position, of_segment, of_ln_weight, of_ln_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fashionbert_fast, CPU, m) {
  m.impl("masked_patch_embed", TORCH_BOX(&forward));
  m.impl("masked_patch_embed_backward", TORCH_BOX(&backward));
}

}  // namespace fashionbert
