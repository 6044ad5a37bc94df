// From the logits of a full step to the K positions worth keeping.
//
//   log_weights[j] = max over the group's query heads r of (logits[r][j] - lse[r])      no exponential: order is kept
//   ranks          = max-pool of log_weights over neighbouring positions
//   chosen         = the K positions of largest rank, ties to the lower position
#pragma once

#include <array>
#include <bit>
#include <span>

#include "recycled/simd/math.hpp"

namespace recycled::inline RECYCLED_ABI::kernels {

/// Logarithm of the largest attention weight in the group, for positions [0, length). Row r's logits start at
/// logits + r * stride.
inline void group_log_weights(const float* logits, index_t stride, std::span<const float> lse, index_t length,
                              float* log_weights) {
  for (index_t j = 0; j < length; ++j) log_weights[j] = logits[j] - lse[0];
  for (std::size_t r = 1; r < lse.size(); ++r) {
    const float* row = logits + static_cast<index_t>(r) * stride;
    for (index_t j = 0; j < length; ++j) {
      const float weight = row[j] - lse[r];
      log_weights[j] = weight > log_weights[j] ? weight : log_weights[j];
    }
  }
}

/// pooled[j] = max of values[j - width / 2 .. j + width / 2], the window cut at the ends; width is odd.
inline void max_pool(std::span<const float> values, index_t width, std::span<float> pooled) {
  std::copy(values.begin(), values.end(), pooled.begin());
  const auto length = static_cast<index_t>(values.size());
  const float* const from = values.data();
  float* const to = pooled.data();
  for (index_t shift = 1; shift <= std::min(width / 2, length - 1); ++shift) {
    for (index_t j = 0; j < length - shift; ++j) to[j] = from[j + shift] > to[j] ? from[j + shift] : to[j];
    for (index_t j = shift; j < length; ++j) to[j] = from[j - shift] > to[j] ? from[j - shift] : to[j];
  }
}

/// A key whose unsigned order is the order of floats; -0 equals +0, and NaN is below everything.
inline std::uint32_t order_key(float rank) {
  if (!(rank == rank)) return 0;
  const auto bits = std::bit_cast<std::uint32_t>(rank + 0.0F);
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}

/// The `count` <= ranks.size() positions of largest rank, ascending, to `chosen`; of equal ranks the lower positions.
/// A radix search for the smallest key that is kept (11, 11 and 10 bits), then one scan.
inline void top_k(std::span<const float> ranks, index_t count, index_t* chosen) {
  std::uint32_t prefix = 0;
  std::uint32_t known = 0;  // which bits of `prefix` are decided
  index_t wanted = count;   // how many of the keys that share the prefix are kept
  for (const auto& [shift, bits] : {std::pair{21, 11}, std::pair{10, 11}, std::pair{0, 10}}) {
    std::array<std::uint32_t, 2048> histogram{};
    const std::uint32_t digit_mask = (1U << bits) - 1U;
    for (const float rank : ranks) {
      const std::uint32_t key = order_key(rank);
      if ((key & known) == prefix) ++histogram[(key >> shift) & digit_mask];
    }
    std::uint32_t digit = digit_mask;
    while (digit > 0 && static_cast<index_t>(histogram[digit]) < wanted) wanted -= histogram[digit--];
    prefix |= digit << shift;
    known |= digit_mask << shift;
  }
  index_t written = 0;
  for (index_t j = 0; written < count; ++j) {
    const std::uint32_t key = order_key(ranks[static_cast<std::size_t>(j)]);
    if (key > prefix || (key == prefix && wanted-- > 0)) chosen[written++] = j;
  }
}

/// sum of exp(logits[p] - lse) over `positions`: the share of one query's attention mass that they hold.
template <class Isa>
float mass(const float* logits, float lse, std::span<const index_t> positions) {
  typename Isa::vec sum = Isa::zero();
  std::array<float, Isa::width> gathered{};
  for (std::size_t i = 0; i < positions.size(); i += gathered.size()) {
    const std::size_t count = std::min(gathered.size(), positions.size() - i);
    gathered.fill(-std::numeric_limits<float>::infinity());
    for (std::size_t j = 0; j < count; ++j) gathered[j] = logits[positions[i + j]];
    sum = Isa::add(sum, simd::exp<Isa>(Isa::sub(Isa::load(gathered.data()), Isa::broadcast(lse))));
  }
  return Isa::reduce_add(sum);
}

}  // namespace recycled::inline RECYCLED_ABI::kernels
