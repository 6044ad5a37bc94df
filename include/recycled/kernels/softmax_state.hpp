// The one merge: blocks, split ranges, recycled rows and several machines all combine like this.
#pragma once

#include <cmath>
#include <limits>

#include "recycled/types/config.hpp"

namespace recycled::inline RECYCLED_ABI {

/// Softmax attention of one query over some of the positions, not yet divided by its sum:
///   max = max_j logit_j,  sum = sum_j exp(logit_j - max),  output[v] = sum_j exp(logit_j - max) value_j[v]
/// The state of no position at all is max = -inf, sum = 0, output = 0.
struct SoftmaxState {
  static constexpr float empty_max = -std::numeric_limits<float>::infinity();

  float max = empty_max;
  float sum = 0;
  float* output = nullptr;  ///< [value_dim], the caller's memory

  /// What exp(logit - max) is taken relative to: 0 where nothing has been seen, because -inf - -inf would be NaN.
  static float reference(float max) { return max == empty_max ? 0.0F : max; }

  /// Takes in the state of other positions. In exact arithmetic the order of merges does not matter.
  void merge(const SoftmaxState& other, index_t value_dim) {
    const float merged = other.max > max ? other.max : max;
    const float mine = std::exp(max - reference(merged));
    const float theirs = std::exp(other.max - reference(merged));
    sum = sum * mine + other.sum * theirs;
    for (index_t v = 0; v < value_dim; ++v) output[v] = output[v] * mine + other.output[v] * theirs;
    max = merged;
  }

  /// log sum_j exp(logit_j); -inf if no position was seen.
  float lse() const { return max + std::log(sum); }

  /// Writes the attention output; 0 if no position was seen.
  void normalize(float* out, index_t value_dim) const {
    const float inverse = sum == 0 ? 0.0F : 1.0F / sum;
    for (index_t v = 0; v < value_dim; ++v) out[v] = output[v] * inverse;
  }
};

}  // namespace recycled::inline RECYCLED_ABI
