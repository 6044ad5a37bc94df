// What selections remember that go by all that a position was ever worth.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

#include "recycled/selection/selection.hpp"

namespace recycled::inline RECYCLED_ABI::detail {

/// For every position what it has gathered since it was seen first. A position that left a set keeps its sum: a later
/// full step may find it again. What tokens that were taken back had added stays.
struct Gathered {
  std::vector<float> sums = {};  // [length]

  /// Tokens that joined have gathered nothing yet. Allocates nothing if reserve() came before.
  void extend(std::size_t length) {
    if (sums.size() < length) sums.resize(length, 0.0F);
  }
  /// Of what is no number nothing is gathered.
  void add(std::size_t position, float share) noexcept { sums[position] += share > 0 ? share : 0; }
  /// The `recent` last of `length` positions outrank all others, the last one most: theirs are the floats just below
  /// newcomer_rank, so that of more than K recent ones the youngest are chosen.
  float rank(std::size_t position, std::size_t length, index_t recent) const noexcept {
    const auto age = static_cast<index_t>(length - 1 - position);
    if (age >= recent) return sums[position];
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(newcomer_rank) -
                                static_cast<std::uint32_t>(std::min(age, index_t{1} << 29)));
  }

  void reserve(index_t length) {
    const auto size = static_cast<std::size_t>(length);
    if (sums.capacity() < size) sums.reserve(std::max(size, 2 * sums.capacity()));
  }
  void truncate(index_t length) noexcept {
    if (static_cast<index_t>(sums.size()) > length) sums.resize(static_cast<std::size_t>(length));
  }
};

/// Positions so far: the new token is among those that a step attends to.
inline std::size_t length_of(const Attended& seen) noexcept {
  return static_cast<std::size_t>(*std::max_element(seen.positions.begin(), seen.positions.end()) + 1);
}

}  // namespace recycled::inline RECYCLED_ABI::detail
