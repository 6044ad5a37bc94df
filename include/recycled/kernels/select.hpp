// From the logits of a full step to the K positions worth keeping.
//
//   log_weights[j] = max over the group's query heads r of (logits[r][j] - lse[r])      no exponential: order is kept
//   ranks          = max-pool of log_weights over neighbouring positions
//   chosen         = the K positions of largest rank, ties to the lower position
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <span>

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

/// A rank x and how many are above it.
struct Above {
  float x = 0;
  index_t count = 0;
};

/// The `count`-th largest rank, and how many are above it; `low` is -infinity, and at least `count` ranks are above it.
///
/// Bisection over all floats by their order keys, sped up: a sample says where to begin, a guess goes where the count
/// would be if ranks lay evenly (every third halves what is left), and the last few are sorted. Of 32768 ranks 8 passes
/// in place of 30, each 16 floats in two instructions, with no branch that depends on the data.
template <class Isa>
Above find_kth(std::span<const float> ranks, index_t count, Above low) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  constexpr index_t few = 32;
  const auto length = static_cast<index_t>(ranks.size());
  Above high{infinity, 0};  // at least `count` ranks are above `low`, and fewer above `high`, which it may be itself
  // Whether `high` is the only float that is above `low` and at most `high`.
  const auto found = [&] { return !(std::nextafter(low.x, infinity) < high.x); };
  const auto look = [&](float x) {
    if (!(x > low.x && x < high.x)) return;
    const index_t above = count_above<Isa>(ranks, x);
    // Of the two zeros, which are equal, the one beside what is left.
    if (above >= count) {
      low = {x == 0 ? 0.0F : x, above};
    } else {
      high = {x == 0 ? -0.0F : x, above};
    }
  };
  std::array<float, 256> sample{};
  constexpr auto samples = static_cast<index_t>(sample.size());
  if (length >= 8 * samples) {
    for (index_t i = 0; i < samples; ++i) {
      const float rank = ranks.data()[i * (length / samples)];
      sample[static_cast<std::size_t>(i)] = rank == rank ? rank : -infinity;
    }
    // Three standard deviations to either side of where the rank should be.
    const double expected = static_cast<double>(count) / static_cast<double>(length) * samples;
    const double reach = 3 * std::sqrt(expected * (1 - expected / samples)) + 1;
    for (const double place : {expected + reach, expected - reach}) {
      const auto nth = sample.begin() + static_cast<std::ptrdiff_t>(std::clamp(place, 0.0, samples - 1.0));
      std::nth_element(sample.begin(), nth, sample.end(), std::greater<>());
      look(*nth);
    }
  }
  for (int pass = 1; !found() && low.count - high.count > few; ++pass) {
    const auto share = static_cast<float>(low.count - count + 1) / static_cast<float>(low.count - high.count + 2);
    const float guess = low.x + share * (high.x - low.x);
    const float middle = from_order_key(order_key(low.x) + (order_key(high.x) - order_key(low.x)) / 2);
    look(pass % 3 != 0 && guess > low.x && guess < high.x ? guess : middle);
  }
  if (!found()) {
    std::array<float, few> last{};
    std::size_t size = 0;
    for_each_above<Isa>(ranks, low.x, [&](index_t j, unsigned mask) {
      for (; mask != 0; mask &= mask - 1) {
        const float rank = ranks.data()[j + std::countr_zero(mask)];
        if (rank <= high.x) last[size++] = rank;
      }
    });
    std::sort(last.begin(), last.begin() + size, std::greater<>());
    const float kth = last[static_cast<std::size_t>(count - high.count - 1)];
    high = {kth, high.count + (std::find(last.begin(), last.end(), kth) - last.begin())};
  }
  return high;
}

/// The `count` <= ranks.size() positions of largest rank, ascending, to `chosen`; of equal ranks the lower positions.
/// -0 equals 0, and NaN is below everything.
template <class Isa = simd::native>
void top_k(std::span<const float> ranks, index_t count, index_t* chosen) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  if (count == 0) return;
  const index_t above_all = count_above<Isa>(ranks, -infinity);
  if (above_all < count) return top_k_of_few(ranks, count, above_all, chosen);
  const Above kth = find_kth<Isa>(ranks, count, {-infinity, above_all});
  index_t ties = count - kth.count;  // those first in position complete the choice
  for_each_above<Isa>(ranks, std::nextafter(kth.x, -infinity), [&](index_t j, unsigned mask) {
    for (; mask != 0; mask &= mask - 1) {
      const index_t position = j + std::countr_zero(mask);
      if (ranks.data()[position] > kth.x || ties-- > 0) *chosen++ = position;
    }
  });
}

/// sum of exp(logits[p] - lse) over `positions`: the share of one query's attention mass that they hold. `gathered` is
/// scratch of as many floats, in whole vectors.
template <class Isa>
float mass(const float* logits, float lse, std::span<const index_t> positions, float* gathered) {
  const auto count = static_cast<index_t>(positions.size());
  for (index_t i = 0; i < count; ++i) gathered[i] = logits[positions.data()[i]];
  std::fill(gathered + count, gathered + simd::padded<Isa>(count), -std::numeric_limits<float>::infinity());
  typename Isa::vec sum = Isa::zero();
  for (index_t i = 0; i < count; i += Isa::width) {
    sum = Isa::add(sum, simd::exp<Isa>(Isa::sub(Isa::load(gathered + i), Isa::broadcast(lse))));
  }
  return Isa::reduce_add(sum);
}

}  // namespace recycled::inline RECYCLED_ABI::kernels
