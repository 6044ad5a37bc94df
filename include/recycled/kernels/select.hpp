// From the logits of a full step to the K positions worth keeping.
//
//   log_weights[j] = max over the group's query heads r of (logits[r][j] - lse[r])      no exponential: order is kept
//   ranks          = max-pool of log_weights over neighbouring positions
//   chosen         = the K positions of largest rank, ties to the lower position
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "recycled/kernels/top_k.hpp"
#include "recycled/simd/math.hpp"

namespace recycled::inline RECYCLED_ABI::kernels {

/// Logarithm of the largest attention weight in the group, for positions [0, length). Row r's logits start at
/// logits + r * stride.
template <class Isa = simd::native>
void group_log_weights(const float* logits, index_t stride, std::span<const float> lse, index_t length,
                       float* log_weights) {
  const auto rows = static_cast<index_t>(lse.size());
  constexpr float lowest = -std::numeric_limits<float>::infinity();
  // A row without any weight (lse = -inf) makes NaN here, which is above nothing: it has no say.
  index_t j = 0;
  for (; j + Isa::width <= length; j += Isa::width) {
    typename Isa::vec largest = Isa::broadcast(lowest);
    for (index_t r = 0; r < rows; ++r) {
      largest = Isa::max(Isa::sub(Isa::load(logits + r * stride + j), Isa::broadcast(lse.data()[r])), largest);
    }
    Isa::store(log_weights + j, largest);
  }
  for (; j < length; ++j) {
    log_weights[j] = lowest;
    for (index_t r = 0; r < rows; ++r) {
      const float weight = logits[r * stride + j] - lse.data()[r];
      log_weights[j] = weight > log_weights[j] ? weight : log_weights[j];
    }
  }
}

/// scores[j] = (1 - share) scores[j] + share exp(log_weights[j]); of a weight that is no number nothing is remembered,
/// and nothing is left of a position that is out of sight (-infinity).
template <class Isa = simd::native>
void remember(std::span<const float> log_weights, float share, std::span<float> scores) {
  using vec = typename Isa::vec;
  const auto length = static_cast<index_t>(scores.size());
  const auto blend = [share](vec score, vec log_weight) {
    const vec weight = Isa::max(simd::exp<Isa>(log_weight), Isa::zero());  // NaN becomes 0
    const vec blended = Isa::fma(Isa::broadcast(share), Isa::sub(weight, score), score);
    return Isa::select_less(log_weight, Isa::broadcast(std::numeric_limits<float>::lowest()), Isa::zero(), blended);
  };
  index_t j = 0;
  for (; j + Isa::width <= length; j += Isa::width) {
    Isa::store(scores.data() + j, blend(Isa::load(scores.data() + j), Isa::load(log_weights.data() + j)));
  }
  if (j == length) return;
  float last[Isa::width];
  Isa::store(last, blend(simd::load_first<Isa>(scores.data(), j, length - j),
                         simd::load_first<Isa>(log_weights.data(), j, length - j)));
  std::copy_n(last, length - j, scores.data() + j);
}

/// pooled[j] = max of values[j - width / 2 .. j + width / 2], the window cut at the ends; width is odd.
template <class Isa = simd::native>
void max_pool(std::span<const float> values, index_t width, std::span<float> pooled) {
  const auto length = static_cast<index_t>(values.size());
  const index_t reach = width / 2;
  const float* const from = values.data();
  float* const to = pooled.data();
  for (index_t j = 0; j < length;) {
    if (j >= reach && j + Isa::width + reach <= length) {
      typename Isa::vec largest = Isa::load(from + j);
      for (index_t shift = 1; shift <= reach; ++shift) {
        largest = Isa::max(Isa::load(from + j - shift), Isa::max(Isa::load(from + j + shift), largest));
      }
      Isa::store(to + j, largest);
      j += Isa::width;
    } else {
      float largest = from[j];
      for (index_t k = std::max(j - reach, index_t{0}); k < std::min(j + reach + 1, length); ++k) {
        largest = from[k] > largest ? from[k] : largest;
      }
      to[j] = largest;
      ++j;
    }
  }
}

/// sum of exp(gathered[i] - lse) over i < count: the share of one query's attention mass that positions of these logits
/// hold. What stands behind them, to whole vectors, is overwritten.
template <class Isa>
float mass(float* gathered, index_t count, float lse) {
  std::fill(gathered + count, gathered + simd::padded<Isa>(count), -std::numeric_limits<float>::infinity());
  typename Isa::vec sum = Isa::zero();
  for (index_t i = 0; i < count; i += Isa::width) {
    sum = Isa::add(sum, simd::exp<Isa>(Isa::sub(Isa::load(gathered + i), Isa::broadcast(lse))));
  }
  return Isa::reduce_add(sum);
}

/// The logits of a KV head's query rows as a step wrote them down.
template <class Isa>
struct StepLogits {
  const float* first = nullptr;
  index_t stride = 0;

  void log_weights(std::span<const float> lse, index_t length, float* weights) const {
    group_log_weights<Isa>(first, stride, lse, length, weights);
  }
  /// The share of row r's attention mass at `positions`; `scratch` has room for them in whole vectors.
  float mass(index_t r, float lse, std::span<const index_t> positions, float* scratch) const {
    const auto count = static_cast<index_t>(positions.size());
    const float* const row = first + r * stride;
    index_t i = 0;
    if constexpr (simd::gathers<Isa>) {
      for (; i + Isa::width <= count; i += Isa::width) {
        Isa::store(scratch + i, Isa::gather(row, positions.data() + i));
      }
    }
    for (; i < count; ++i) scratch[i] = row[positions.data()[i]];
    return kernels::mass<Isa>(scratch, count, lse);
  }
};

}  // namespace recycled::inline RECYCLED_ABI::kernels
