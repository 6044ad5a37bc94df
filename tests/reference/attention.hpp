// The oracle: softmax attention of one query row, as written on a blackboard, in long double.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <recycled/types/shape.hpp>
#include <span>
#include <vector>

namespace reference {

using recycled::index_t;

/// Keys or values of one KV head as floats: rows[position][d].
using Rows = std::vector<std::vector<float>>;

/// What one query row attends to, and the outcome.
struct Attention {
  std::vector<long double> logits;     ///< of every position given, after scale and soft cap
  std::vector<long double> weights;    ///< softmax of the logits
  std::vector<long double> output;     ///< [value_dim]; 0 if there is no position
  std::vector<long double> magnitude;  ///< [value_dim]: sum_j weight_j |value_j|, what rounding errors are relative to
  std::vector<long double> values;     ///< [value_dim]: sum_j |value_j|, and what underflow is
  long double lse = -std::numeric_limits<long double>::infinity();
  long double largest_logit = 0;  ///< max_j |logit_j|
};

/// The positions of [0, position] that the token at `position` sees, ascending.
inline std::vector<index_t> seen_by(index_t position, const recycled::AttentionOptions& options) {
  std::vector<index_t> seen;
  for (index_t j = 0; j <= position; ++j) {
    const bool in_window = options.window == 0 || j > position - options.window;
    if (in_window || j < options.sinks) seen.push_back(j);
  }
  return seen;
}

inline long double logit(std::span<const float> query, std::span<const float> key,
                         const recycled::AttentionOptions& options) {
  long double dot = 0;
  for (std::size_t d = 0; d < query.size(); ++d) dot += static_cast<long double>(query[d]) * key[d];
  const long double scale = options.scale != 0 ? static_cast<long double>(options.scale)
                                               : 1 / std::sqrt(static_cast<long double>(query.size()));
  const long double cap = options.soft_cap;
  return cap > 0 ? cap * std::tanh(scale * dot / cap) : scale * dot;
}

/// `query` attends to the given `positions` of `keys` and `values`. A scale of 0 means 1 / sqrt(head_dim).
inline Attention attend(std::span<const float> query, const Rows& keys, const Rows& values,
                        std::span<const index_t> positions, const recycled::AttentionOptions& options = {}) {
  Attention a;
  const std::size_t value_dim = values.empty() ? 0 : values.front().size();
  a.output.assign(value_dim, 0);
  a.magnitude.assign(value_dim, 0);
  a.values.assign(value_dim, 0);
  if (positions.empty()) return a;

  for (const index_t j : positions) a.logits.push_back(logit(query, keys[static_cast<std::size_t>(j)], options));
  const long double max = *std::max_element(a.logits.begin(), a.logits.end());
  long double sum = 0;
  for (const long double s : a.logits) {
    sum += std::exp(s - max);
    a.largest_logit = std::max(a.largest_logit, std::abs(s));
  }
  a.lse = max + std::log(sum);
  for (std::size_t i = 0; i < positions.size(); ++i) {
    a.weights.push_back(std::exp(a.logits[i] - max) / sum);
    const std::vector<float>& value = values[static_cast<std::size_t>(positions[i])];
    for (std::size_t v = 0; v < value_dim; ++v) {
      a.output[v] += a.weights[i] * value[v];
      a.magnitude[v] += a.weights[i] * std::abs(value[v]);
      a.values[v] += std::abs(value[v]);
    }
  }
  return a;
}

/// The last row's token attends to everything that it sees.
inline Attention attend(std::span<const float> query, const Rows& keys, const Rows& values,
                        const recycled::AttentionOptions& options = {}) {
  return attend(query, keys, values, seen_by(static_cast<index_t>(keys.size()) - 1, options), options);
}

/// 32 eps (1 + max|s|): how far a logit or the log-sum-exp may be off, and the output relative to its magnitude.
inline long double logit_bound(const Attention& expected) {
  return 32 * static_cast<long double>(std::numeric_limits<float>::epsilon()) * (1 + expected.largest_logit);
}

/// The promised bound of output[v]: 32 eps (1 + max|s|) sum_j p_j |v_j|, and 2^-126 sum_j |v_j|: what weights that are
/// no normal floats contribute.
inline long double output_bound(const Attention& expected, std::size_t v) {
  return logit_bound(expected) * expected.magnitude[v] +
         static_cast<long double>(std::numeric_limits<float>::min()) * expected.values[v];
}

/// Mean squared error over the mean square; 0 if both are all zeros.
inline long double nmse(std::span<const float> actual, std::span<const long double> expected) {
  long double error = 0, power = 0;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    error += (actual[i] - expected[i]) * (actual[i] - expected[i]);
    power += expected[i] * expected[i];
  }
  return error == 0 ? 0 : error / power;
}

/// Output within its bound, element by element. Every comparison is one that a NaN fails.
inline testing::AssertionResult near(std::span<const float> output, const Attention& expected) {
  if (output.size() != expected.output.size()) {
    return testing::AssertionFailure() << output.size() << " outputs, expected " << expected.output.size();
  }
  for (std::size_t v = 0; v < output.size(); ++v) {
    const long double error = std::abs(output[v] - expected.output[v]);
    const long double bound = output_bound(expected, v);
    if (!(error <= bound)) {
      return testing::AssertionFailure() << "output[" << v << "] = " << output[v] << ", expected " << expected.output[v]
                                         << ", off by " << error << " > " << bound << " = 32 eps * "
                                         << bound / 32 /
                                                static_cast<long double>(std::numeric_limits<float>::epsilon());
    }
  }
  return testing::AssertionSuccess();
}

/// A log-sum-exp or a logit within the bound; -infinity must be met exactly.
inline testing::AssertionResult near(float actual, long double value, const Attention& expected) {
  const bool same = std::isinf(value) ? actual == value : std::abs(actual - value) <= logit_bound(expected);
  if (same) return testing::AssertionSuccess();
  return testing::AssertionFailure() << actual << ", expected " << value << " +- " << logit_bound(expected);
}

}  // namespace reference
