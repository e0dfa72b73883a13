// packed_attention on CPU. The unit of work is a head of a sequence: everything of it is packed once into scratch that
// stays in the second cache, then worked on a tile of query rows at a time, whose scores stay in the first. Sums run in
// the same order whatever the number of threads.
//
// The backward computes scores and probabilities again. Where bfloat16 is multiplied natively, probabilities and their
// gradients are rounded to bfloat16 as operands, as PyTorch's own kernels do; sums stay float32.
//
// Long: forward and backward share packing, tiles and the softmax of a tile, each for float32 and native bfloat16.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "common/dropout.h"
#include "common/exp.h"
#include "common/tensor.h"
#include "cpu/tiles.h"
#include "cpu/vectors.h"

namespace fashionbert {
namespace {

constexpr int64_t kQueryBlock = 192;  // queries whose probabilities the backward holds at once

// The operator's arguments, as both directions see them.
template <typename Storage>
struct Problem {
  const Storage* qkv;   // token t at qkv + t * stride: query, key, value, each `heads` x `width`
  const Storage* bias;  // or null
  const int32_t* cu_seqlens;
  int64_t stride, heads, width;
  Dropout dropout;

  int64_t hidden() const { return heads * width; }
  compute_t<Storage> scale() const { return 1 / std::sqrt(static_cast<compute_t<Storage>>(width)); }
};

enum Part { kQuery, kKey, kValue };

// A head of a sequence.
struct Item {
  int64_t sequence, head, first, length;
};

template <typename Storage>
Item item_of(const Problem<Storage>& problem, int64_t index) {
  const int64_t sequence = index / problem.heads, first = problem.cu_seqlens[sequence];
  return {sequence, index % problem.heads, first, problem.cu_seqlens[sequence + 1] - first};
}

// Asks for what the next item will load of rows `from` .. `from + count`: they lie a page or so apart, and waiting for
// each in turn costs more than multiplying them. `grad`: the context's gradient, or null. Inline, for GCC 12 takes a
// function that only prefetches for one without effects, and its calls away.
template <typename Storage>
__attribute__((always_inline)) inline void prefetch_rows(const Problem<Storage>& problem, const Item& next,
                                                         const Storage* grad, int64_t from, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(Storage);
  const int64_t column = next.head * problem.width;
  for (int64_t r = from; r < std::min(from + count, next.length); ++r) {
    const Storage* row = problem.qkv + (next.first + r) * problem.stride + column;
    for (int64_t i = 0; i < problem.width; i += kLine) {
      for (int part = 0; part < 3; ++part) __builtin_prefetch(row + part * problem.hidden() + i, 0, 2);
      if (grad) __builtin_prefetch(grad + (next.first + r) * problem.hidden() + column + i, 0, 2);
    }
  }
}

// Sizes of the scratch of sequences of up to `length`.
template <typename Storage>
struct Extent {
  int64_t keys;   // a whole number of vectors, so also an even number of query rows
  int64_t width;  // of a head
  Extent(int64_t length, int64_t head_width)
      : keys(round_up(length, Operand<Storage>::kLanes)), width(padded<Storage>(head_width)) {}
  int64_t block() const { return std::min(keys, kQueryBlock); }
};

// Rows of numbers plus bias as elements, zeros where they are padded.
template <typename Storage>
void load_rows(const Storage* in, int64_t in_row, const Storage* bias, int64_t count, int64_t padded_count,
               int64_t width, int64_t padded_width, typename Operand<Storage>::Element* out) {
  constexpr int kLanes = Operand<Storage>::kLanes;
  for (int64_t r = 0; r < count; ++r, in += in_row, out += padded_width) {
    for (int64_t i = 0; i < padded_width; i += kLanes) {
      auto values = load_lanes(in + i, width - i);
      if (bias) values += load_lanes(bias + i, width - i);
      store_vector(values, out + i);
    }
  }
  std::fill_n(out, (padded_count - count) * padded_width, typename Operand<Storage>::Element(0));
}

template <typename Storage>
void load_part(const Problem<Storage>& problem, const Item& item, Part part, const Extent<Storage>& extent,
               typename Operand<Storage>::Element* out) {
  const int64_t column = part * problem.hidden() + item.head * problem.width;
  load_rows(problem.qkv + item.first * problem.stride + column, problem.stride,
            problem.bias ? problem.bias + column : nullptr, item.length, extent.keys, problem.width, extent.width, out);
}

inline const uint32_t* as_words(const c10::BFloat16* elements) { return reinterpret_cast<const uint32_t*>(elements); }
inline const float* as_words(const float* elements) { return elements; }
inline const double* as_words(const double* elements) { return elements; }

// Rows of elements as the right operand of a sum over rows, in `out` unless they are that already.
template <typename Storage>
const typename Operand<Storage>::Word* summed_over_rows(const typename Operand<Storage>::Element* rows, int64_t count,
                                                        int64_t width, typename Operand<Storage>::Word* out) {
  if constexpr (Operand<Storage>::kPack == 1) {
    return rows;
  } else {
    for (int64_t r = 0; r < count; r += 2)
      pair_rows(rows + r * width, rows + (r + 1) * width, width, out + r / 2 * width);
    return out;
  }
}

template <typename Storage>
int64_t words_of(int64_t count) {
  return (count + Operand<Storage>::kPack - 1) / Operand<Storage>::kPack;
}

// What the probabilities of a query are multiplied by; null without dropout.
inline const float* factors_of(const Dropout& dropout, int64_t head, int64_t token, int64_t keys, float* buffer) {
  if (!dropout.active()) return nullptr;
  for (int64_t block = 0; block * kDropoutBlock < keys; ++block) {
    dropout_factors(dropout, static_cast<uint32_t>(head), static_cast<uint32_t>(token), static_cast<uint32_t>(block),
                    buffer + block * kDropoutBlock);
  }
  return buffer;
}

template <typename Real>
vector_t<Real> load_factors(const float* factors) {
  if constexpr (std::is_same_v<Real, float>) return load_vector(factors);
  vector_t<Real> wide;
  for (int lane = 0; lane < kLanesOf<Real>; ++lane) wide[lane] = factors[lane];
  return wide;
}

// Minus infinity for the scores of what is not a key; all of it lies in the last vector.
template <typename Real>
void mask_padding(Real* scores, int64_t length, int64_t keys) {
  const int64_t last = keys - kLanesOf<Real>;
  const auto masked =
      first_lanes<Real>(load_vector(scores + last), length - last, -std::numeric_limits<Real>::infinity());
  store_vector(masked, scores + last);
}

// Forward -------------------------------------------------------------------------------------------------------------

template <typename Storage>
struct ForwardScratch : Scratch {
  using Ops = Operand<Storage>;
  typename Ops::Element *rows, *query;
  typename Ops::Word *key, *value;  // summed over columns, over rows
  typename Ops::Real* scores;
  typename Ops::Element* weights;  // e^(score - maximum), after dropout
  typename Ops::Real* context;
  float* factors;

  explicit ForwardScratch(const Extent<Storage>& most) {
    for (auto** elements : {&rows, &query}) *elements = take<typename Ops::Element>(most.keys * most.width);
    for (auto** words : {&key, &value}) *words = take<typename Ops::Word>(most.keys * most.width / Ops::kPack);
    scores = take<typename Ops::Real>(kTileRows * most.keys);
    weights = take<typename Ops::Element>(kTileRows * most.keys);
    context = take<typename Ops::Real>(kTileRows * most.width);
    factors = take<float>(round_up(most.keys, kDropoutBlock));
  }
};

template <typename Real>
struct Softmax {
  Real maximum, sum;
};

// Takes scores to weights e^(score - maximum) times dropout's factors; the sum is of the exponentials before dropout.
// Of the `keys` columns those from `length` on are padding.
template <typename Storage, typename Real = compute_t<Storage>>
Softmax<Real> softmax_row(Real* scores, int64_t length, int64_t keys, Real scale, const float* factors,
                          typename Operand<Storage>::Element* weights) {
  constexpr int kLanes = kLanesOf<Real>;
  mask_padding(scores, length, keys);
  vector_t<Real> largest = load_vector(scores), sums = {};
  for (int64_t j = kLanes; j < keys; j += kLanes) largest = larger<Real>(largest, load_vector(scores + j));
  const Real maximum = largest_lane<Real>(largest) * scale;
  for (int64_t j = 0; j < keys; j += kLanes) {
    vector_t<Real> e = exp_nonpositive(load_vector(scores + j) * scale - maximum);
    sums += e;
    if (factors) e *= load_factors<Real>(factors + j);
    store_vector(e, weights + j);
  }
  return {maximum, sum_lanes<Real>(sums)};
}

// Stores scale * values; the result is added to `sums` unless that is null.
template <typename Storage, typename Real = compute_t<Storage>>
void store_row(const Real* values, Real scale, int64_t width, Storage* out, Real* sums = nullptr) {
  for (int64_t i = 0; i < width; i += kLanesOf<Real>) {
    const vector_t<Real> result = load_vector(values + i) * scale;
    store_lanes(result, out + i, width - i);
    if (sums) store_lanes(load_lanes(sums + i, width - i) + result, sums + i, width - i);
  }
}

template <typename Storage>
void attend(const Problem<Storage>& problem, const Item& item, const Item& next, ForwardScratch<Storage>& scratch,
            Storage* context, compute_t<Storage>* lse) {
  using Ops = Operand<Storage>;
  const Extent<Storage> extent(item.length, problem.width);
  const int64_t keys = extent.keys, width = extent.width, row_words = width / Ops::kPack;
  load_part(problem, item, kQuery, extent, scratch.query);
  load_part(problem, item, kKey, extent, scratch.rows);
  transpose(as_words(scratch.rows), keys, row_words, row_words, scratch.key, keys);
  load_part(problem, item, kValue, extent, scratch.rows);
  const auto* value = summed_over_rows<Storage>(scratch.rows, keys, width, scratch.value);
  const auto* query = as_words(scratch.query);
  const int64_t rows = round_up(item.length, 2);
  for (int64_t i = 0; i < rows;) {
    const int count = tile_rows(rows - i);
    prefetch_rows<Storage>(problem, next, nullptr, i, count);
    multiply<Storage>(count, keys, words_of<Storage>(problem.width), {query + i * row_words, row_words, 1}, scratch.key,
                      keys, scratch.scores, keys, false);
    Softmax<typename Ops::Real> softmax[kTileRows];
    for (int r = 0; r < count; ++r) {
      typename Ops::Real* scores = scratch.scores + r * keys;
      const float* factors = factors_of(problem.dropout, item.head, item.first + i + r, keys, scratch.factors);
      softmax[r] =
          softmax_row<Storage>(scores, item.length, keys, problem.scale(), factors, scratch.weights + r * keys);
    }
    const auto* weights = as_words(scratch.weights);
    multiply<Storage>(count, width, words_of<Storage>(item.length), {weights, keys / Ops::kPack, 1}, value, width,
                      scratch.context, width, false);
    for (int r = 0; r < count && i + r < item.length; ++r) {
      const int64_t token = item.first + i + r;
      store_row(scratch.context + r * width, 1 / softmax[r].sum, problem.width,
                context + token * problem.hidden() + item.head * problem.width);
      lse[token] = softmax[r].maximum + std::log(softmax[r].sum);
    }
    i += count;
  }
}

// Backward ------------------------------------------------------------------------------------------------------------

template <typename Storage>
struct BackwardScratch : Scratch {
  using Ops = Operand<Storage>;
  typename Ops::Element *query, *key, *value, *grad;         // grad: of the context, of a block of queries
  typename Ops::Word *key_columns, *value_columns;           // summed over columns
  typename Ops::Word *key_pairs, *query_pairs, *grad_pairs;  // summed over rows
  typename Ops::Real *scores, *slopes;                       // become probabilities and gradients of scaled scores
  typename Ops::Element* slope_rows;                         // of a tile, where words are pairs
  typename Ops::Word *weight_pairs, *slope_pairs;            // those of a block of queries, summed over queries
  typename Ops::Real *grad_query, *grad_key, *grad_value;
  float* factors;

  explicit BackwardScratch(const Extent<Storage>& most) {
    const int64_t size = most.keys * most.width, block = most.block();
    for (auto** elements : {&query, &key, &value}) *elements = take<typename Ops::Element>(size);
    for (auto** words : {&key_columns, &value_columns, &key_pairs})
      *words = take<typename Ops::Word>(size / Ops::kPack);
    grad = take<typename Ops::Element>(block * most.width);
    for (auto** words : {&query_pairs, &grad_pairs}) *words = take<typename Ops::Word>(block * most.width / Ops::kPack);
    for (auto** tile : {&scores, &slopes}) *tile = take<typename Ops::Real>(kTileRows * most.keys);
    slope_rows = take<typename Ops::Element>(kTileRows * most.keys);
    for (auto** words : {&weight_pairs, &slope_pairs})
      *words = take<typename Ops::Word>(block * most.keys / Ops::kPack);
    grad_query = take<typename Ops::Real>(kTileRows * most.width);
    for (auto** sums : {&grad_key, &grad_value}) *sums = take<typename Ops::Real>(size);
    factors = take<float>(2 * round_up(most.keys, kDropoutBlock));
  }
};

// What turns a query's numbers into probabilities and gradients of scaled scores.
template <typename Real>
struct Slope {
  Real inverse = 0, mean = 0;
};

// Scores become exponentials, `slopes` (gradients of probabilities after dropout) those of probabilities before it.
// Dividing by the sum again undoes the rounding of a large log-sum-exp.
template <typename Real>
Slope<Real> exponentiate_row(Real* scores, Real* slopes, int64_t length, int64_t keys, Real scale, Real lse,
                             const float* factors) {
  constexpr int kLanes = kLanesOf<Real>;
  mask_padding(scores, length, keys);
  vector_t<Real> sums = {}, products = {};
  for (int64_t j = 0; j < keys; j += kLanes) {
    const vector_t<Real> e = exp_nonpositive(load_vector(scores + j) * scale - lse);
    vector_t<Real> slope = load_vector(slopes + j);
    if (factors) {
      slope *= load_factors<Real>(factors + j);
      store_vector(slope, slopes + j);
    }
    sums += e;
    products += e * slope;
    store_vector(e, scores + j);
  }
  const Real inverse = 1 / sum_lanes<Real>(sums);
  return {inverse, sum_lanes<Real>(products) * inverse};
}

// Two neighbouring queries' probabilities after dropout and gradients of the scaled scores, as operands.
template <typename Storage, typename Real = compute_t<Storage>>
void store_queries(const Real* scores, const Real* slopes, int64_t keys, const Slope<Real>* of, const float* factors,
                   int64_t factors_row, typename Operand<Storage>::Word* weight_pairs,
                   typename Operand<Storage>::Word* slope_pairs, typename Operand<Storage>::Element* slope_rows) {
  for (int64_t j = 0; j < keys; j += kLanesOf<Real>) {
    vector_t<Real> p[2], ds[2];
    FB_UNROLL for (int r = 0; r < 2; ++r) {
      p[r] = load_vector(scores + r * keys + j) * of[r].inverse;
      ds[r] = p[r] * (load_vector(slopes + r * keys + j) - of[r].mean);
      if (factors) p[r] *= load_factors<Real>(factors + r * factors_row + j);
    }
    store_pair<Storage>(p[0], p[1], keys, weight_pairs + j, nullptr);
    store_pair<Storage>(ds[0], ds[1], keys, slope_pairs + j, slope_rows + j);
  }
}

template <typename Storage>
struct Gradients {
  const Storage* context;  // (tokens, hidden), of the result
  const compute_t<Storage>* lse;
  Storage* qkv;                // (tokens, 3 hidden)
  compute_t<Storage>* biases;  // (sequences, 3 hidden) sums of each sequence, or null
};

template <typename Storage>
void load_operands(const Problem<Storage>& problem, const Item& item, BackwardScratch<Storage>& scratch) {
  using Ops = Operand<Storage>;
  const Extent<Storage> extent(item.length, problem.width);
  const int64_t keys = extent.keys, row_words = extent.width / Ops::kPack;
  load_part(problem, item, kQuery, extent, scratch.query);
  load_part(problem, item, kKey, extent, scratch.key);
  load_part(problem, item, kValue, extent, scratch.value);
  transpose(as_words(scratch.key), keys, row_words, row_words, scratch.key_columns, keys);
  transpose(as_words(scratch.value), keys, row_words, row_words, scratch.value_columns, keys);
}

// Of a tile of `count` queries, `i` into the block that starts at query `from`: scores and gradients of probabilities
// become operands, the gradients of scores also summed over keys, which are the result.
template <typename Storage>
const typename Operand<Storage>::Word* slope_operands(const Problem<Storage>& problem, const Item& item, int64_t from,
                                                      int64_t i, int count, BackwardScratch<Storage>& scratch,
                                                      const compute_t<Storage>* lse) {
  using Ops = Operand<Storage>;
  const int64_t keys = Extent<Storage>(item.length, problem.width).keys, factors_row = round_up(keys, kDropoutBlock);
  const int64_t pair = i / Ops::kPack * keys;
  for (int r = 0; r < count; r += 2) {
    auto *scores = scratch.scores + r * keys, *slopes = scratch.slopes + r * keys;
    Slope<typename Ops::Real> of[2];
    const float* factors = nullptr;
    for (int half = 0; half < 2 && from + i + r + half < item.length; ++half) {  // the rest makes their number even
      const int64_t token = item.first + from + i + r + half;
      const float* of_row = factors_of(problem.dropout, item.head, token, keys, scratch.factors + half * factors_row);
      if (half == 0) factors = of_row;
      of[half] = exponentiate_row(scores + half * keys, slopes + half * keys, item.length, keys, problem.scale(),
                                  lse[token], of_row);
    }
    if (from + i + r + 1 == item.length) {
      std::fill_n(scores + keys, keys, typename Ops::Real(0));
      std::fill_n(scratch.factors + factors_row, keys, 0.0f);
    }
    store_queries<Storage>(scores, slopes, keys, of, factors, factors_row,
                           scratch.weight_pairs + pair + r / Ops::kPack * keys,
                           scratch.slope_pairs + pair + r / Ops::kPack * keys, scratch.slope_rows + r * keys);
  }
  if constexpr (Ops::kPack == 1)
    return scratch.slope_pairs + pair;
  else
    return as_words(scratch.slope_rows);
}

// Probabilities and their gradients of the queries from `from` on, in scratch; the queries' own gradients, stored.
template <typename Storage>
void differentiate_queries(const Problem<Storage>& problem, const Item& item, const Item& next, int64_t from,
                           int64_t rows, const typename Operand<Storage>::Word* key_pairs,
                           BackwardScratch<Storage>& scratch, const Gradients<Storage>& gradients) {
  using Ops = Operand<Storage>;
  const Extent<Storage> extent(item.length, problem.width);
  const int64_t keys = extent.keys, width = extent.width, row_words = width / Ops::kPack, hidden = problem.hidden();
  const auto* query = as_words(scratch.query) + from * row_words;
  const auto* grad = as_words(scratch.grad);
  const int64_t column = item.head * problem.width, head_words = words_of<Storage>(problem.width);
  auto* sums = gradients.biases ? gradients.biases + item.sequence * 3 * hidden + column : nullptr;
  for (int64_t i = 0; i < rows;) {
    const int count = tile_rows(rows - i);
    prefetch_rows(problem, next, gradients.context, from + i, count);
    multiply<Storage>(count, keys, head_words, {query + i * row_words, row_words, 1}, scratch.key_columns, keys,
                      scratch.scores, keys, false);
    multiply<Storage>(count, keys, head_words, {grad + i * row_words, row_words, 1}, scratch.value_columns, keys,
                      scratch.slopes, keys, false);
    const auto* slopes = slope_operands(problem, item, from, i, count, scratch, gradients.lse);
    multiply<Storage>(count, width, words_of<Storage>(item.length), {slopes, keys / Ops::kPack, 1}, key_pairs, width,
                      scratch.grad_query, width, false);
    for (int r = 0; r < count && from + i + r < item.length; ++r) {
      store_row(scratch.grad_query + r * width, problem.scale(), problem.width,
                gradients.qkv + (item.first + from + i + r) * 3 * hidden + column, sums);
    }
    i += count;
  }
}

template <typename Storage>
void differentiate(const Problem<Storage>& problem, const Item& item, const Item& next,
                   BackwardScratch<Storage>& scratch, const Gradients<Storage>& gradients) {
  using Ops = Operand<Storage>;
  const Extent<Storage> extent(item.length, problem.width);
  const int64_t keys = extent.keys, width = extent.width, hidden = problem.hidden();
  const int64_t column = item.head * problem.width, key_rows = round_up(item.length, 2);
  load_operands(problem, item, scratch);
  const auto* key_pairs = summed_over_rows<Storage>(scratch.key, keys, width, scratch.key_pairs);
  for (int64_t from = 0; from < item.length; from += kQueryBlock) {
    const int64_t count = std::min(kQueryBlock, item.length - from), rows = round_up(count, 2);
    load_rows<Storage>(gradients.context + (item.first + from) * hidden + column, hidden, nullptr, count, rows,
                       problem.width, width, scratch.grad);
    differentiate_queries(problem, item, next, from, rows, key_pairs, scratch, gradients);
    const auto* query = summed_over_rows<Storage>(scratch.query + from * width, rows, width, scratch.query_pairs);
    const auto* grad = summed_over_rows<Storage>(scratch.grad, rows, width, scratch.grad_pairs);
    const int64_t words = rows / Ops::kPack;
    multiply<Storage>(key_rows, width, words, {scratch.slope_pairs, 1, keys}, query, width, scratch.grad_key, width,
                      from > 0);
    multiply<Storage>(key_rows, width, words, {scratch.weight_pairs, 1, keys}, grad, width, scratch.grad_value, width,
                      from > 0);
  }
  for (int64_t j = 0; j < item.length; ++j) {
    Storage* out = gradients.qkv + (item.first + j) * 3 * hidden + column;
    auto* sums = gradients.biases ? gradients.biases + item.sequence * 3 * hidden + column : nullptr;
    store_row(scratch.grad_key + j * width, problem.scale(), problem.width, out + hidden,
              sums ? sums + hidden : nullptr);
    store_row(scratch.grad_value + j * width, typename Ops::Real(1), problem.width, out + 2 * hidden,
              sums ? sums + 2 * hidden : nullptr);
  }
}

// Operators -----------------------------------------------------------------------------------------------------------

struct Arguments {
  Tensor qkv;
  std::optional<Tensor> bias;
  Tensor cu_seqlens;
  Dropout dropout;
  int64_t tokens, heads, width, sequences, longest;  // longest: as found
};

Arguments checked_arguments(const Tensor& qkv, const std::optional<Tensor>& bias, const Tensor& cu_seqlens,
                            int64_t heads, int64_t max_seqlen, double dropout, const std::optional<Tensor>& seed,
                            int64_t site) {
  STD_TORCH_CHECK(qkv.dim() == 2 && heads >= 1 && qkv.size(1) > 0 && qkv.size(1) % (3 * heads) == 0,
                  "packed_attention: qkv must have shape (T, 3 * heads * E)");
  STD_TORCH_CHECK(cu_seqlens.dim() == 1 && cu_seqlens.size(0) >= 1 && cu_seqlens.scalar_type() == ScalarType::Int,
                  "packed_attention: cu_seqlens must be (S + 1,) int32");
  STD_TORCH_CHECK(
      !bias || (bias->dim() == 1 && bias->size(0) == qkv.size(1) && bias->scalar_type() == qkv.scalar_type()),
      "packed_attention: bias must be a vector as wide as qkv, of its dtype");
  STD_TORCH_CHECK(dropout >= 0 && dropout <= 1, "packed_attention: dropout must lie in [0, 1]");
  STD_TORCH_CHECK(dropout == 0 || (seed && seed->numel() == 1 && seed->scalar_type() == ScalarType::Long),
                  "packed_attention: dropout needs a seed of one int64");
  Arguments result{qkv.stride(1) == 1 ? qkv : torch::stable::contiguous(qkv),
                   std::nullopt,
                   torch::stable::contiguous(cu_seqlens),
                   {},
                   qkv.size(0),
                   heads,
                   qkv.size(1) / (3 * heads),
                   cu_seqlens.size(0) - 1,
                   0};
  if (bias) result.bias = torch::stable::contiguous(*bias);
  if (dropout > 0) {
    const auto key = static_cast<uint64_t>(*static_cast<const int64_t*>(seed->const_data_ptr()));
    result.dropout = make_dropout(key, static_cast<uint32_t>(site), dropout);
  }
  const auto* at = static_cast<const int32_t*>(result.cu_seqlens.const_data_ptr());
  STD_TORCH_CHECK(at[0] == 0 && at[result.sequences] <= result.tokens,
                  "packed_attention: cu_seqlens must start at 0 and end within the ", result.tokens, " tokens");
  for (int64_t s = 0; s < result.sequences; ++s) {
    STD_TORCH_CHECK(at[s] <= at[s + 1] && at[s + 1] - at[s] <= max_seqlen, "packed_attention: cu_seqlens[", s + 1,
                    "] is ", at[s + 1], " after ", at[s],
                    ": cu_seqlens must ascend by at most max_seqlen = ", max_seqlen);
    result.longest = std::max<int64_t>(result.longest, at[s + 1] - at[s]);
  }
  return result;
}

template <typename Storage>
Problem<Storage> problem_of(const Arguments& arguments) {
  return {static_cast<const Storage*>(arguments.qkv.const_data_ptr()),
          arguments.bias ? static_cast<const Storage*>(arguments.bias->const_data_ptr()) : nullptr,
          static_cast<const int32_t*>(arguments.cu_seqlens.const_data_ptr()),
          arguments.qkv.stride(0),
          arguments.heads,
          arguments.width,
          arguments.dropout};
}

// Calls use(item, next item, scratch) for each head of each sequence that has tokens; a thread has scratch of its own.
template <typename Storage, template <typename> typename Scratch, typename Use>
void for_items(const Problem<Storage>& problem, const Arguments& arguments, Use&& use) {
  if (arguments.longest == 0) return;
  const int64_t work = arguments.longest * arguments.longest * arguments.width;
  const int64_t grain = std::max<int64_t>(1, (int64_t{1} << 18) / work);
  torch::stable::parallel_for(0, arguments.sequences * arguments.heads, grain, [&](int64_t begin, int64_t end) {
    Scratch<Storage> scratch(Extent<Storage>(arguments.longest, arguments.width));
    for (int64_t index = begin; index < end; ++index) {
      const Item item = item_of(problem, index);
      if (item.length > 0) use(item, item_of(problem, std::min(index + 1, end - 1)), scratch);
    }
  });
}

ScalarType compute_dtype(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

std::tuple<Tensor, Tensor> forward(Tensor qkv, std::optional<Tensor> bias, Tensor cu_seqlens, int64_t heads,
                                   int64_t max_seqlen, double dropout, std::optional<Tensor> seed, int64_t site) {
  const Arguments arguments = checked_arguments(qkv, bias, cu_seqlens, heads, max_seqlen, dropout, seed, site);
  const int64_t tokens = arguments.tokens, hidden = heads * arguments.width;
  Tensor context = torch::stable::new_empty(qkv, {tokens, hidden});
  Tensor lse = torch::stable::new_empty(qkv, {heads, tokens}, compute_dtype(qkv));
  dispatch_floating(qkv.scalar_type(), "packed_attention", [&]<typename Storage>() {
    const auto problem = problem_of<Storage>(arguments);
    auto* out = static_cast<Storage*>(context.mutable_data_ptr());
    auto* out_lse = static_cast<compute_t<Storage>*>(lse.mutable_data_ptr());
    for_items<Storage, ForwardScratch>(problem, arguments,
                                       [&](const Item& item, const Item& next, ForwardScratch<Storage>& scratch) {
                                         attend(problem, item, next, scratch, out, out_lse + item.head * tokens);
                                       });
    const int64_t used = problem.cu_seqlens[arguments.sequences];
    std::fill_n(out + used * hidden, (tokens - used) * hidden, Storage(0));
    for (int64_t h = 0; h < heads; ++h) std::fill_n(out_lse + h * tokens + used, tokens - used, compute_t<Storage>(0));
  });
  return {context, lse};
}

// The bias gradient: the sequences' sums, added up in their order.
template <typename Storage>
void sum_biases(const std::vector<compute_t<Storage>>& biases, int64_t width, Storage* out) {
  std::vector<compute_t<Storage>> sums(width, 0);
  for (size_t from = 0; from < biases.size(); from += width) {
    FB_SIMD()
    for (int64_t i = 0; i < width; ++i) sums[i] += biases[from + i];
  }
  for (int64_t i = 0; i < width; i += kLanesOf<compute_t<Storage>>)
    store_lanes(load_lanes(sums.data() + i, width - i), out + i, width - i);
}

std::tuple<Tensor, Tensor> backward(Tensor grad_context, Tensor qkv, std::optional<Tensor> bias, Tensor cu_seqlens,
                                    Tensor context, Tensor lse, int64_t heads, int64_t max_seqlen, double dropout,
                                    std::optional<Tensor> seed, int64_t site) {
  const Arguments arguments = checked_arguments(qkv, bias, cu_seqlens, heads, max_seqlen, dropout, seed, site);
  const int64_t tokens = arguments.tokens, hidden = heads * arguments.width;
  STD_TORCH_CHECK(grad_context.dim() == 2 && grad_context.size(0) == tokens && grad_context.size(1) == hidden &&
                      grad_context.scalar_type() == qkv.scalar_type(),
                  "packed_attention_backward: grad_context must be like the context");
  STD_TORCH_CHECK(lse.dim() == 2 && lse.size(0) == heads && lse.size(1) == tokens && lse.is_contiguous() &&
                      lse.scalar_type() == compute_dtype(qkv),
                  "packed_attention_backward: lse must be what packed_attention returned");
  const Tensor grad = torch::stable::contiguous(grad_context);
  Tensor grad_qkv = torch::stable::new_empty(qkv, {tokens, 3 * hidden});
  Tensor grad_bias = torch::stable::new_empty(qkv, {bias ? 3 * hidden : 0});
  dispatch_floating(qkv.scalar_type(), "packed_attention_backward", [&]<typename Storage>() {
    using Real = compute_t<Storage>;
    const auto problem = problem_of<Storage>(arguments);
    std::vector<Real> biases(bias ? arguments.sequences * 3 * hidden : 0, Real(0));
    auto* out = static_cast<Storage*>(grad_qkv.mutable_data_ptr());
    const Gradients<Storage> gradients{static_cast<const Storage*>(grad.const_data_ptr()),
                                       static_cast<const Real*>(lse.const_data_ptr()), out,
                                       bias ? biases.data() : nullptr};
    for_items<Storage, BackwardScratch>(problem, arguments,
                                        [&](const Item& item, const Item& next, BackwardScratch<Storage>& scratch) {
                                          Gradients<Storage> of_head = gradients;
                                          of_head.lse += item.head * tokens;
                                          differentiate(problem, item, next, scratch, of_head);
                                        });
    const int64_t used = problem.cu_seqlens[arguments.sequences];
    std::fill_n(out + used * 3 * hidden, (tokens - used) * 3 * hidden, Storage(0));
    if (bias) sum_biases(biases, 3 * hidden, static_cast<Storage*>(grad_bias.mutable_data_ptr()));
  });
  return {grad_qkv, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fashionbert_fast, CPU, m) {
  m.impl("packed_attention", TORCH_BOX(&forward));
  m.impl("packed_attention_backward", TORCH_BOX(&backward));
}

}  // namespace fashionbert
