// A set of positions, a bit for each.
#pragma once

#include <bit>
#include <cstdint>

#include "recycled/types/shape.hpp"

namespace recycled::inline RECYCLED_ABI::kernels {

/// Positions of [0, length) in (length + 63) / 64 words, which somebody else owns.
struct PositionBits {
  std::uint64_t* words = nullptr;
  index_t length = 0;

  static index_t words_for(index_t length) { return (length + 63) / 64; }

  bool contains(index_t p) const { return (words[p / 64] >> (p % 64) & 1) != 0; }
  void insert(index_t p) const { words[p / 64] |= std::uint64_t{1} << (p % 64); }
  void erase(index_t p) const { words[p / 64] &= ~(std::uint64_t{1} << (p % 64)); }
  /// The lowest position, or -1.
  index_t first() const {
    for (index_t w = 0; w < words_for(length); ++w) {
      if (words[w] != 0) return w * 64 + std::countr_zero(words[w]);
    }
    return -1;
  }
  /// The highest position, or -1.
  index_t last() const {
    for (index_t w = words_for(length); w-- > 0;) {
      if (words[w] != 0) return w * 64 + 63 - std::countl_zero(words[w]);
    }
    return -1;
  }
  /// Writes all positions, ascending, to `to`, takes them out, and returns how many there were.
  index_t drain(index_t* to) const {
    const index_t* const begin = to;
    for (index_t w = 0; w < words_for(length); ++w) {
      for (std::uint64_t left = words[w]; left != 0; left &= left - 1) *to++ = w * 64 + std::countr_zero(left);
      words[w] = 0;
    }
    return to - begin;
  }
};

}  // namespace recycled::inline RECYCLED_ABI::kernels
