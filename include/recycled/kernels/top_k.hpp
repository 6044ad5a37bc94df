// The K largest of many ranks, and the smallest of them.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <span>
#include <type_traits>

#include "recycled/kernels/position_bits.hpp"
#include "recycled/simd/simd.hpp"

namespace recycled::inline RECYCLED_ABI::kernels {

/// Ranks are floats, or whole numbers of sixteen bits as a sketch has them (CodeWeights): vectors of them, and their
/// ends. NaN is a rank, below all.
template <class Isa, class N>
struct RankVectors;
template <class Isa>
struct RankVectors<Isa, float> {
  static constexpr float lowest = -std::numeric_limits<float>::infinity();
  static constexpr float highest = std::numeric_limits<float>::infinity();
  static constexpr index_t width = Isa::width;
  static auto load(const float* p) { return Isa::load(p); }
  static auto broadcast(float x) { return Isa::broadcast(x); }
};
template <class Isa>
struct RankVectors<Isa, std::int16_t> {
  static constexpr std::int16_t lowest = std::numeric_limits<std::int16_t>::min();
  static constexpr std::int16_t highest = std::numeric_limits<std::int16_t>::max();
  static constexpr index_t width = Isa::code_lanes;
  static auto load(const std::int16_t* p) { return Isa::load_sums16(p); }
  static auto broadcast(std::int16_t x) { return Isa::broadcast_sums16(x); }
};

/// Calls f(j, v, valid) for every vector v of ranks[j], ...; valid has a bit for each that is one.
template <class Isa, class N, class F>
void for_each_vector(std::span<const N> ranks, const F& f) {
  using Vectors = RankVectors<Isa, N>;
  const auto length = static_cast<index_t>(ranks.size());
  constexpr unsigned all = (2U << (Vectors::width - 1)) - 1U;
  index_t j = 0;
  for (; j + Vectors::width <= length; j += Vectors::width) f(j, Vectors::load(ranks.data() + j), all);
  if (j == length) return;
  N last[Vectors::width] = {};
  std::copy(ranks.begin() + j, ranks.end(), last);
  f(j, Vectors::load(last), (1U << (length - j)) - 1U);
}
/// Calls f(j, mask) for every vector of ranks: bit i says whether ranks[j + i] > x. NaN is above nothing.
template <class Isa, class N, class F>
void for_each_above(std::span<const N> ranks, N x, const F& f) {
  const auto bound = RankVectors<Isa, N>::broadcast(x);
  for_each_vector<Isa>(ranks, [&](index_t j, auto v, unsigned valid) { f(j, Isa::greater_mask(v, bound) & valid); });
}
template <class Isa, class N>
index_t count_above(std::span<const N> ranks, N x) {
  index_t count = 0;
  for_each_above<Isa>(ranks, x, [&](index_t /*j*/, unsigned mask) { count += std::popcount(mask); });
  return count;
}

/// Index of the smallest rank, of equal ones that with the lowest position; there is at least one, and none is NaN.
template <class Isa = simd::native>
index_t lowest_rank(std::span<const float> ranks, const index_t* positions) {
  const auto length = static_cast<index_t>(ranks.size());
  float smallest = ranks[0];
  index_t j = 0;
  if (length >= Isa::width) {
    typename Isa::vec least = Isa::load(ranks.data());
    for (; j + Isa::width <= length; j += Isa::width) least = Isa::min(least, Isa::load(ranks.data() + j));
    float lanes[Isa::width];
    Isa::store(lanes, least);
    smallest = *std::min_element(lanes, lanes + Isa::width);
  }
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

/// Whole numbers in the order of ranks from the lowest to the highest, and back.
inline std::uint32_t order_key(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000U;
}
inline std::uint32_t order_key(std::int16_t x) { return static_cast<std::uint32_t>(x + 32768); }
template <class N>
N from_order_key(std::uint32_t key) {
  if constexpr (std::is_same_v<N, float>) {
    return std::bit_cast<float>((key >> 31) != 0 ? key & 0x7FFFFFFFU : ~key);
  } else {
    return static_cast<N>(static_cast<std::int32_t>(key) - 32768);
  }
}

/// The choice where fewer than `count` ranks, `above` of them, are above the lowest: all of these, then what is equal
/// to it, then NaN.
template <class N>
void mark_all(std::span<const N> ranks, N lowest, index_t count, index_t above, const PositionBits& to) {
  index_t equals = std::min(static_cast<index_t>(std::count(ranks.begin(), ranks.end(), lowest)), count - above);
  index_t nans = count - above - equals;
  for (index_t j = 0, left = count; left > 0; ++j) {
    const N rank = ranks.data()[j];
    index_t& some = rank != rank ? nans : equals;
    if (!(rank > lowest) && some-- <= 0) continue;
    to.insert(j);
    --left;
  }
}

/// The search for the `wanted`-th largest rank.
///
/// Bisection over all ranks by their order keys, sped up: a sample says where to begin, a guess goes where the count
/// would be if ranks lay evenly (every third halves what is left), and the last few are sorted. Of 32768 ranks 8 passes
/// in place of 30, each a vector in two instructions, with no branch that depends on the data. Where vectors of floats
/// can be compressed, what is left is gathered once that is at most 4096, and the other passes go over that alone. What
/// ends it are keys, whole numbers: it ends where the host has denormal floats flushed to zero, too.
template <class Isa, class N>
class KthSearch {
  using Vectors = RankVectors<Isa, N>;
  static constexpr bool gathers = simd::compresses<Isa> && std::is_same_v<N, float>;

 public:
  /// The rank, and what a choice needs to know.
  struct Found {
    N x = 0;
    index_t above = 0;  ///< how many ranks are above it
  };

  /// `all` ranks, `wanted` at least, are above the lowest.
  KthSearch(std::span<const N> ranks, index_t wanted, index_t all)
      : ranks_(ranks), wanted_(wanted), low_{order_key(Vectors::lowest), all}, high_{order_key(Vectors::highest), 0} {}

  Found find() {
    if (length() >= 8 * samples) begin_by_sample();
    [[maybe_unused]] N gathered[gathers ? some + Isa::width : 1];
    if constexpr (gathers) {
      narrow(some);
      if (between() <= some && between() < length() / 2) gather(gathered);
    }
    narrow(few);
    return left() > 1 ? sort_few() : Found{from_order_key<N>(high_.key), high_.above};
  }

 private:
  static constexpr index_t samples = 256;
  static constexpr index_t few = 32;
  static constexpr index_t some = 4096;

  struct Bound {
    std::uint32_t key;
    index_t above;  // ranks
  };

  index_t length() const { return static_cast<index_t>(ranks_.size()); }
  std::uint32_t left() const { return high_.key - low_.key; }

  index_t between() const { return low_.above - high_.above; }

  void narrow(index_t most) {
    for (int pass = 1; left() > 1 && between() > most; ++pass) look(pass % 3 == 0 ? middle() : guess());
  }
  void look(std::uint32_t key) {
    if (key <= low_.key || key >= high_.key) return;
    const index_t above = gone_ + count_above<Isa>(ranks_, from_order_key<N>(key));
    (above >= wanted_ ? low_ : high_) = {key, above};
  }
  std::uint32_t middle() const { return low_.key + left() / 2; }
  std::uint32_t guess() const {
    const float share = static_cast<float>(low_.above - wanted_ + 1) / static_cast<float>(low_.above - high_.above + 2);
    const auto low = static_cast<float>(from_order_key<N>(low_.key));
    const float x = low + share * (static_cast<float>(from_order_key<N>(high_.key)) - low);
    const std::uint32_t key = x == x ? order_key(static_cast<N>(x)) : 0;
    return key > low_.key && key < high_.key ? key : middle();
  }

  /// Looks three standard deviations to either side of where the rank should be.
  void begin_by_sample() {
    std::array<N, samples> sample{};
    const N* rank = ranks_.data();
    for (N& one : sample) {
      one = *rank == *rank ? *rank : Vectors::lowest;
      rank += length() / samples;
    }
    const double expected = static_cast<double>(wanted_) / static_cast<double>(length()) * samples;
    const double reach = 3 * std::sqrt(expected * (1 - expected / samples)) + 1;
    N* end = sample.data() + samples;
    for (const double place : {expected + reach, expected - reach}) {
      N* const at = sample.data() + static_cast<index_t>(std::clamp(place, 0.0, samples - 1.0));
      std::nth_element(sample.data(), at, end, std::greater<>());
      look(order_key(*at));
      end = at + 1;
    }
  }

  /// Goes on with what is above `low` and not above `high`, in `to`.
  void gather(N* to) {
    const auto low = Vectors::broadcast(from_order_key<N>(low_.key));
    const auto high = Vectors::broadcast(from_order_key<N>(high_.key));
    const N* const first = to;
    for_each_vector<Isa>(ranks_, [&](index_t /*j*/, auto v, unsigned valid) {
      to = Isa::append(v, Isa::greater_mask(v, low) & ~Isa::greater_mask(v, high) & valid, to);
    });
    ranks_ = {first, to};
    gone_ = high_.above;
  }

  /// The end, where at most `few` ranks are above `low` and not above `high`.
  Found sort_few() const {
    const auto low = Vectors::broadcast(from_order_key<N>(low_.key));
    const auto high = Vectors::broadcast(from_order_key<N>(high_.key));
    std::array<N, few> last{};
    std::size_t size = 0;
    for_each_vector<Isa>(ranks_, [&](index_t j, auto v, unsigned valid) {
      unsigned mask = Isa::greater_mask(v, low) & ~Isa::greater_mask(v, high) & valid;
      for (; mask != 0; mask &= mask - 1) last[size++] = ranks_.data()[j + std::countr_zero(mask)];
    });
    std::sort(last.begin(), last.begin() + size, std::greater<>());
    const N kth = last[static_cast<std::size_t>(wanted_ - high_.above - 1)];
    return {kth, high_.above + (std::find(last.begin(), last.end(), kth) - last.begin())};
  }

  std::span<const N> ranks_;
  index_t wanted_;
  index_t gone_ = 0;  // how many ranks were above those that are left
  Bound low_;         // at least `wanted` ranks are above it,
  Bound high_;        // and fewer above this: it may be the rank itself
};

/// mark_largest of floats, or of whole numbers.
template <class Isa, class N>
void mark(std::span<const N> ranks, index_t count, const PositionBits& to) {
  using Vectors = RankVectors<Isa, N>;
  static_assert(64 % Vectors::width == 0);
  if (count == 0) return;
  const index_t above_all = count_above<Isa>(ranks, Vectors::lowest);
  if (above_all < count) return mark_all(ranks, Vectors::lowest, count, above_all, to);
  const auto kth = KthSearch<Isa, N>(ranks, count, above_all).find();
  index_t ties = count - kth.above;  // those first in position complete the choice
  const auto x = Vectors::broadcast(kth.x), lowest = Vectors::broadcast(Vectors::lowest);
  std::uint64_t word = 0;
  for_each_vector<Isa>(ranks, [&](index_t j, auto v, unsigned valid) {
    unsigned mask = Isa::greater_mask(v, x);
    unsigned equal = ~mask & ~Isa::greater_mask(x, v) & Isa::greater_mask(v, lowest) & valid;
    mask &= valid;
    for (; equal != 0 && ties > 0; equal &= equal - 1, --ties) mask |= equal & (~equal + 1);
    word |= static_cast<std::uint64_t>(mask) << (j % 64);
    if (j % 64 + Vectors::width == 64 || j + Vectors::width >= to.length) {
      to.words[j / 64] = word;
      word = 0;
    }
  });
}
/// Marks the `count` <= ranks.size() positions of largest rank in the empty set `to`, of as many positions; of equal
/// ranks the lower positions. -0 equals 0, and NaN is below everything.
template <class Isa = simd::native>
void mark_largest(std::span<const float> ranks, index_t count, const PositionBits& to) {
  mark<Isa>(ranks, count, to);
}
template <class Isa = simd::native>
void mark_largest(std::span<const std::int16_t> ranks, index_t count, const PositionBits& to) {
  mark<Isa>(ranks, count, to);
}

}  // namespace recycled::inline RECYCLED_ABI::kernels
