#pragma once

#include "recycled/kernels/select.hpp"
#include "recycled/selection/selection.hpp"

namespace recycled::inline RECYCLED_ABI {

/// The paper's selection: scores, max-pooled over neighbouring positions so that an important token keeps its company
/// (SnapKV's pooling).
struct TopK {
  index_t pool = 7;                ///< width of the pool, odd; 1: none
  index_t observation_window = 1;  ///< last prompt queries that choose the first set

  void rank(const Scores& scores, std::span<float> ranks) const { kernels::max_pool(scores.log_weights, pool, ranks); }
  void validate() const {
    detail::require(pool >= 1 && pool % 2 == 1, "TopK.pool", pool, "an odd number");
    detail::require(observation_window >= 1, "TopK.observation_window", observation_window, "at least 1");
  }
};

}  // namespace recycled::inline RECYCLED_ABI
