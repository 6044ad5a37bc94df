#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "recycled/kernels/select.hpp"
#include "recycled/selection/selection.hpp"

namespace recycled::inline RECYCLED_ABI {

/// The paper's selection: scores, max-pooled over neighbouring positions so that an important token keeps its company
/// (SnapKV's pooling). With an observation window and the schedule NeverFull it is SnapKV (Li et al. 2024,
/// arXiv:2404.14469).
///
/// With `memory` a full step's scores (attention weights) are averaged with those of the steps before: a single query
/// is a noisy judge of what will matter. The paper has none, and refreshing soon enough leaves little for it to do.
/// (What a full step of a token that was taken back added to the memory stays there.)
struct TopK {
  float memory = 0;                ///< share of the old scores in the new ones, in [0, 1)
  index_t pool = 7;                ///< width of the pool, odd; 1: none
  index_t observation_window = 1;  ///< last prompt queries that choose the first set
  std::vector<float> scores = {};  ///< [length at the last full step], with memory; starts empty

  void rank(const Scores& measured, std::span<float> ranks) {
    if (memory == 0) return kernels::max_pool(measured.log_weights, pool, ranks);
    if (measured.of_prompt) scores.clear();
    // A query that is no number says nothing of any position, and what is remembered stays as it is.
    const auto says_nothing = [](float weight) { return weight == -std::numeric_limits<float>::infinity(); };
    if (std::all_of(measured.log_weights.begin(), measured.log_weights.end(), says_nothing)) {
      return kernels::max_pool(measured.log_weights, pool, ranks);
    }
    const bool first = scores.empty();
    scores.resize(ranks.size(), 0.0F);  // a token that joined since has been nothing yet
    kernels::remember(measured.log_weights, first ? 1 : 1 - memory, scores);
    kernels::max_pool(std::span<const float>(scores), pool, ranks);
  }
  bool ranks_are_scores() const { return memory == 0 && pool == 1; }
  void reserve(index_t length) {
    const auto size = static_cast<std::size_t>(length);
    if (memory > 0 && scores.capacity() < size) scores.reserve(std::max(size, 2 * scores.capacity()));
  }
  void truncate(index_t length) noexcept {
    if (static_cast<index_t>(scores.size()) > length) scores.resize(static_cast<std::size_t>(length));
  }
  template <class Io>
  void transfer(Io& io) {
    io(scores);
  }
  void validate() const {
    detail::require(memory >= 0 && memory < 1, "TopK.memory", memory, "0 to less than 1");
    detail::require(pool >= 1 && pool % 2 == 1, "TopK.pool", pool, "an odd number");
    detail::require(observation_window >= 1, "TopK.observation_window", observation_window, "at least 1");
  }
};

}  // namespace recycled::inline RECYCLED_ABI
