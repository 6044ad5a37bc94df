#pragma once

#include <cmath>

#include "recycled/selection/gathered.hpp"

namespace recycled::inline RECYCLED_ABI {

/// H2O (Zhang et al. 2023, arXiv:2306.14048): the most recent positions, and of the others those that gathered the most
/// attention weight (the largest of the group's query heads) over all steps that attended to them. H2O gives both half
/// of K.
///
/// Of the prompt's queries the last `observation_window` count: with a window of the whole prompt this is H2O, but for
/// groups, of whose heads H2O sums up each by itself. Each query takes a pass over the keys, so that of a long prompt
/// the last few must do.
struct HeavyHitters {
  index_t recent = 0;               ///< how many are kept for being recent, K / 2 in H2O; must be given
  index_t observation_window = 32;  ///< last prompt queries whose weights are gathered
  detail::Gathered gathered = {};   ///< starts empty

  void rank(const Scores& measured, std::span<float> ranks) {
    if (measured.of_prompt) gathered.sums.clear();
    gathered.extend(ranks.size());
    const auto queries = static_cast<float>(measured.queries);
    for (std::size_t j = 0; j < ranks.size(); ++j) {
      gathered.add(j, queries * weight(measured.log_weights[j]));
      ranks[j] = gathered.rank(j, ranks.size(), recent);
    }
  }
  void attended(const Attended& seen, std::span<float> ranks) {
    const std::size_t length = detail::length_of(seen);
    gathered.extend(length);
    for (std::size_t s = 0; s < ranks.size(); ++s) {
      const auto position = static_cast<std::size_t>(seen.positions[s]);
      gathered.add(position, weight(seen.log_weights[s]));
      ranks[s] = gathered.rank(position, length, recent);
    }
  }
  void reserve(index_t length) { gathered.reserve(length); }
  void truncate(index_t length) noexcept { gathered.truncate(length); }
  template <class Io>
  void transfer(Io& io) {
    io(gathered.sums);
  }
  void validate() const {
    detail::require(recent >= 1, "HeavyHitters.recent", recent, "at least 1; half of the capacity is usual");
    detail::require(observation_window >= 1, "HeavyHitters.observation_window", observation_window, "at least 1");
  }

 private:
  /// A sketch may take a weight for more than 1. NaN stays NaN, which gathers nothing.
  static float weight(float log_weight) noexcept { return std::exp(std::min(log_weight, 0.0F)); }
};

}  // namespace recycled::inline RECYCLED_ABI
