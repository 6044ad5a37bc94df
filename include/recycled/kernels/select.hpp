// From the logits of a full step to the K positions worth keeping.
//
//   log_weights[j] = max over the group's query heads r of (logits[r][j] - lse[r])      no exponential: order is kept
//   ranks          = max-pool of log_weights over neighbouring positions
//   chosen         = the K positions of largest rank, ties to the lower position
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <span>

#include "recycled/simd/math.hpp"

namespace recycled::inline RECYCLED_ABI::kernels {

/// Logarithm of the largest attention weight in the group, for positions [0, length). Row r's logits start at
/// logits + r * stride.
inline void group_log_weights(const float* logits, index_t stride, std::span<const float> lse, index_t length,
                              float* log_weights) {
  // A row without any weight (lse = -inf) makes NaN here, which is above nothing: it has no say.
  std::fill(log_weights, log_weights + length, -std::numeric_limits<float>::infinity());
  for (std::size_t r = 0; r < lse.size(); ++r) {
    const float* row = logits + static_cast<index_t>(r) * stride;
    for (index_t j = 0; j < length; ++j) {
      const float weight = row[j] - lse[r];
      log_weights[j] = weight > log_weights[j] ? weight : log_weights[j];
    }
  }
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

/// Calls f(j, mask) for every vector of ranks: bit i says whether ranks[j + i] > x. NaN is above nothing.
template <class Isa, class F>
void for_each_above(std::span<const float> ranks, float x, const F& f) {
  const auto length = static_cast<index_t>(ranks.size());
  const typename Isa::vec bound = Isa::broadcast(x);
  index_t j = 0;
  for (; j + Isa::width <= length; j += Isa::width) f(j, Isa::greater_mask(Isa::load(ranks.data() + j), bound));
  if (j < length) {
    const unsigned valid = (1U << (length - j)) - 1U;
    f(j, valid & Isa::greater_mask(simd::load_first<Isa>(ranks.data(), j, length - j), bound));
  }
}
template <class Isa>
index_t count_above(std::span<const float> ranks, float x) {
  index_t count = 0;
  for_each_above<Isa>(ranks, x, [&](index_t /*j*/, unsigned mask) { count += std::popcount(mask); });
  return count;
}

/// Index of the smallest rank, of equal ones that with the lowest position; there is at least one, and none is NaN.
template <class Isa = simd::native>
index_t lowest_rank(std::span<const float> ranks, const index_t* positions) {
  const auto length = static_cast<index_t>(ranks.size());
  float smallest = ranks[0];
  typename Isa::vec negated = Isa::broadcast(-smallest);
  index_t j = 0;
  for (; j + Isa::width <= length; j += Isa::width) {
    negated = Isa::max(negated, Isa::sub(Isa::zero(), Isa::load(ranks.data() + j)));
  }
  smallest = -Isa::reduce_max(negated);
  for (; j < length; ++j) smallest = std::min(smallest, ranks.data()[j]);
  index_t lowest = -1;
  for_each_above<Isa>(ranks, smallest, [&](index_t first, unsigned above) {
    unsigned equal = ~above & ((2U << (std::min<index_t>(Isa::width, length - first) - 1)) - 1U);
    for (; equal != 0; equal &= equal - 1) {
      const index_t i = first + std::countr_zero(equal);
      if (lowest < 0 || positions[i] < positions[lowest]) lowest = i;
    }
  });
  return lowest;
}

/// Whole numbers in the order of floats from -infinity to infinity, and back.
inline std::uint32_t order_key(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000U;
}
inline float from_order_key(std::uint32_t key) {
  return std::bit_cast<float>((key >> 31) != 0 ? key & 0x7FFFFFFFU : ~key);
}

/// top_k where fewer than `count` ranks, `above` of them, are above -infinity: all of these, then what is equal to it,
/// then NaN.
inline void top_k_of_few(std::span<const float> ranks, index_t count, index_t above, index_t* chosen) {
  constexpr float lowest = -std::numeric_limits<float>::infinity();
  index_t equals = std::min(static_cast<index_t>(std::count(ranks.begin(), ranks.end(), lowest)), count - above);
  index_t nans = count - above - equals;
  const index_t* const end = chosen + count;
  for (index_t j = 0; chosen != end; ++j) {
    const float rank = ranks.data()[j];
    index_t& left = rank != rank ? nans : equals;
    if (rank > lowest || left-- > 0) *chosen++ = j;
  }
}

/// The `count` <= ranks.size() positions of largest rank, ascending, to `chosen`; of equal ranks the lower positions.
/// -0 equals 0, and NaN is below everything.
///
/// The smallest rank that is kept is found by bisection over all floats: at most 32 passes that count, 16 floats in two
/// instructions, no branch that depends on the data, and no order among the kept that nobody asked for. (A radix
/// search's histograms took 27 us for 4608 scores, this takes 7.)
template <class Isa = simd::native>
void top_k(std::span<const float> ranks, index_t count, index_t* chosen) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  const index_t above_all = count_above<Isa>(ranks, -infinity);
  if (above_all < count) return top_k_of_few(ranks, count, above_all, chosen);
  // More than or exactly `count` ranks are above `low`, fewer are above `high`.
  std::uint32_t low = order_key(-infinity);
  std::uint32_t high = order_key(infinity);
  while (high - low > 1) {
    const std::uint32_t middle = low + (high - low) / 2;
    const index_t above = count_above<Isa>(ranks, from_order_key(middle));
    (above >= count ? low : high) = middle;
    if (above == count) break;
  }
  // Between `low` and `high` lies one value at most; of those that have it, the first few complete the choice.
  const float floor = from_order_key(low);
  const float ceiling = from_order_key(high);
  index_t ties = count - count_above<Isa>(ranks, ceiling);
  for_each_above<Isa>(ranks, floor, [&](index_t j, unsigned mask) {
    for (; mask != 0; mask &= mask - 1) {
      const index_t position = j + std::countr_zero(mask);
      const bool above = ranks.data()[position] > ceiling;
      if (above || ties-- > 0) *chosen++ = position;
    }
  });
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
