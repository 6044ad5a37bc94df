#pragma once

#include <algorithm>

#include "recycled/selection/sliding_window.hpp"

namespace recycled::inline RECYCLED_ABI {

/// The first positions, where attention rests, for good, and the K - sinks most recent (StreamingLLM, Xiao et al. 2023,
/// arXiv:2309.17453). Keys keep the positions at which they were written; StreamingLLM numbers them anew in its cache.
struct StreamingLlm {
  index_t sinks = 4;  ///< how many; with K or more of them nothing else stays

  void rank(const Scores& measured, std::span<float> ranks) const noexcept {
    SlidingWindow::rank(measured, ranks);
    const auto first = std::min(static_cast<std::size_t>(sinks), ranks.size());
    std::fill_n(ranks.begin(), first, std::numeric_limits<float>::infinity());
  }
  /// A context that began with fewer tokens got its first positions one by one, as newcomers.
  void attended(const Attended& seen, std::span<float> ranks) const noexcept {
    for (std::size_t s = 0; s < ranks.size(); ++s) {
      if (seen.positions[s] < sinks) ranks[s] = std::numeric_limits<float>::infinity();
    }
  }
  void validate() const { detail::require(sinks >= 0, "StreamingLlm.sinks", sinks, "0 or more"); }
};

}  // namespace recycled::inline RECYCLED_ABI
