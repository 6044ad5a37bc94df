#pragma once

#include "recycled/selection/selection.hpp"

namespace recycled::inline RECYCLED_ABI {

/// The K most recent positions, whatever their scores (Longformer, Beltagy et al. 2020, arXiv:2004.05150).
struct SlidingWindow {
  static void rank(const Scores& /*measured*/, std::span<float> ranks) noexcept {
    // By age, not by position: floats tell whole numbers apart up to 2^24, and what may stay is young.
    for (std::size_t j = 0; j < ranks.size(); ++j) ranks[j] = -static_cast<float>(ranks.size() - 1 - j);
  }
};

}  // namespace recycled::inline RECYCLED_ABI
