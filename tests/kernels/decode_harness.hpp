// Runs the decode kernels over a cache as a layer does, and compares with the oracle.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <recycled/kernels/decode.hpp>

#include "reference/random.hpp"
#include "simd/instruction_sets.hpp"

namespace harness {

using namespace recycled;

inline constexpr float quiet_nan = std::numeric_limits<float>::quiet_NaN();
inline constexpr float inf = std::numeric_limits<float>::infinity();
inline constexpr float untouched = -12345;

/// `dim`, or what q8_0 makes of it: the next multiple of its block.
template <Scalar T>
constexpr index_t fit(index_t dim) {
  return (dim + values_per_element<T> - 1) / values_per_element<T> * values_per_element<T>;
}

struct Outcome {
  index_t value_dim;
  index_t length;
  std::vector<float> out;     // [query_heads, value_dim]
  std::vector<float> lse;     // [query_heads]
  std::vector<float> logits;  // [query_heads, length]; `untouched` where nothing was written

  std::span<const float> output(index_t head) const { return row(out, head, value_dim); }
  std::span<const float> logit_row(index_t head) const { return row(logits, head, length); }

  static std::span<const float> row(const std::vector<float>& all, index_t i, index_t dim) {
    return std::span(all).subspan(static_cast<std::size_t>(i * dim), static_cast<std::size_t>(dim));
  }
};

/// Equal to the last bit, NaNs and signs of zero included.
inline bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}
inline bool same_bits(const Outcome& a, const Outcome& b) {
  return same_bits(a.out, b.out) && same_bits(a.lse, b.lse) && same_bits(a.logits, b.logits);
}

inline bool all_nan(std::span<const float> values) {
  return std::all_of(values.begin(), values.end(), [](float x) { return std::isnan(x); });
}

/// What KV head `g` reads in a full step.
template <Scalar T>
kernels::HeadWork<T> full_work(const KvView<T>& kv, const Shape& shape, index_t g, const AttentionOptions& options) {
  const Visible visible(options, kv.length - 1);
  return {.head = g,
          .keys = {kv.head_keys(g), kv.key_strides.position, shape.head_dim},
          .values = {kv.head_values(g), kv.value_strides.position, shape.value_dim},
          .pages = kv.pages,
          .sinks = visible.sinks,
          .window = visible.window};
}

/// All pieces of all heads, first to last or last to first, then the merges.
template <class Isa, Scalar T>
Outcome run(const Shape& shape, std::vector<kernels::HeadWork<T>> work, index_t length, std::span<const float> query,
            const AttentionOptions& options, kernels::Workspace<Isa>& workspace, bool backwards = false) {
  const auto floats = [](index_t n, float value) { return std::vector<float>(static_cast<std::size_t>(n), value); };
  Outcome result{shape.value_dim, length, floats(shape.output_size(), quiet_nan), floats(shape.query_heads, quiet_nan),
                 floats(shape.query_heads * length, untouched)};
  const index_t group = shape.group();
  for (index_t g = 0; g < shape.kv_heads; ++g) {
    work[static_cast<std::size_t>(g)].sink = {result.logits.data() + g * group * length, length};
  }
  workspace.template reserve<T>(shape.query_heads, shape.head_dim,
                                shape.kv_heads * kernels::most_pieces(shape.kv_heads), group, shape.value_dim,
                                kernels::block);
  workspace.pack_queries(query.data(), 1, shape, options.scale);
  const std::span<kernels::HeadWork<T>> heads(work);
  const kernels::Cut cut = kernels::cut(heads, shape.kv_heads);
  for (index_t task = 0; task < cut.tasks; ++task) {
    kernels::attend_task<Isa, T>(heads, cut, backwards ? cut.tasks - 1 - task : task, group, options.soft_cap,
                                 workspace);
  }
  for (index_t g = 0; g < shape.kv_heads; ++g) {
    const kernels::HeadWork<T>& head = work[static_cast<std::size_t>(g)];
    kernels::merge_pieces<Isa>(head.first_tile, head.pieces(), group, shape.value_dim, workspace,
                               result.out.data() + g * group * shape.value_dim, result.lse.data() + g * group);
  }
  return result;
}

/// A full step of the last token of `kv`.
template <class Isa, Scalar T>
Outcome decode(const Shape& asked, const KvView<T>& kv, std::span<const float> query, AttentionOptions options = {},
               bool backwards = false) {
  const Shape shape = recycled::detail::checked<T>(asked);
  options = recycled::detail::checked(options, shape);
  std::vector<kernels::HeadWork<T>> work;
  for (index_t g = 0; g < shape.kv_heads; ++g) work.push_back(full_work(kv, shape, g, options));
  kernels::Workspace<Isa> workspace;
  return run<Isa, T>(shape, work, kv.length, query, options, workspace, backwards);
}
template <class Isa, Scalar T>
Outcome decode(const reference::Cache<T>& cache, std::span<const float> query, AttentionOptions options = {}) {
  return decode<Isa, T>(cache.shape(), cache.view(), query, options);
}

/// Output within the bound and with an NMSE of at most 1e-8, log-sum-exp and logits within theirs.
template <Scalar T>
void expect_matches_oracle(const Outcome& actual, const reference::Cache<T>& cache, std::span<const float> query,
                           const AttentionOptions& options = {}) {
  const Shape& shape = cache.shape();
  const std::vector<index_t> seen = reference::seen_by(cache.length() - 1, options);
  std::vector<long double> expected_output;
  for (index_t g = 0; g < shape.kv_heads; ++g) {
    const reference::Rows keys = cache.keys(g), values = cache.values(g);
    for (index_t h = g * shape.group(); h < (g + 1) * shape.group(); ++h) {
      SCOPED_TRACE("length " + std::to_string(cache.length()) + ", query head " + std::to_string(h));
      const auto row =
          query.subspan(static_cast<std::size_t>(h * shape.head_dim), static_cast<std::size_t>(shape.head_dim));
      const reference::Attention expected = reference::attend(row, keys, values, seen, options);
      EXPECT_TRUE(reference::near(actual.output(h), expected));
      EXPECT_TRUE(reference::near(actual.lse[static_cast<std::size_t>(h)], expected.lse, expected)) << "lse";
      std::vector<long double> logits(static_cast<std::size_t>(cache.length()), untouched);
      for (std::size_t i = 0; i < seen.size(); ++i) logits[static_cast<std::size_t>(seen[i])] = expected.logits[i];
      for (std::size_t j = 0; j < logits.size(); ++j) {
        ASSERT_TRUE(reference::near(actual.logit_row(h)[j], logits[j], expected)) << "logit " << j;
      }
      expected_output.insert(expected_output.end(), expected.output.begin(), expected.output.end());
    }
  }
  EXPECT_TRUE(reference::nmse(actual.out, expected_output) <= 1e-8L);
}

}  // namespace harness
