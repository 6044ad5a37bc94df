// Selections that are chosen at run time: those of the paper's baselines.
#pragma once

#include <algorithm>
#include <functional>
#include <recycled/recycled.hpp>
#include <span>
#include <variant>

namespace examples {

using recycled::index_t;

/// A new selection takes a place here. TopK has none: it is told nothing of recycled steps, which makes them cheaper.
struct AnySelection {
  std::variant<recycled::SlidingWindow, recycled::StreamingLlm, recycled::HeavyHitters, recycled::Keyformer> chosen;
  index_t observation_window = 1;

  void rank(const recycled::Scores& scores, std::span<float> ranks) {
    std::visit([&](auto& selection) { selection.rank(scores, ranks); }, chosen);
  }
  void attended(const recycled::Attended& seen, std::span<float> ranks) {
    std::visit(
        [&](auto& selection) {
          if constexpr (requires { selection.attended(seen, ranks); }) selection.attended(seen, ranks);
        },
        chosen);
  }
  void reserve(index_t length) {
    std::visit(
        [&](auto& selection) {
          if constexpr (requires { selection.reserve(length); }) selection.reserve(length);
        },
        chosen);
  }
  void truncate(index_t length) {
    std::visit(
        [&](auto& selection) {
          if constexpr (requires { selection.truncate(length); }) selection.truncate(length);
        },
        chosen);
  }
  void validate() const {
    std::visit(
        [](const auto& selection) {
          if constexpr (requires { selection.validate(); }) selection.validate();
        },
        chosen);
  }
};

template <recycled::Selection S>
AnySelection any_selection(const S& selection) {
  return {selection, recycled::detail::observation_window(selection)};
}

/// What a baseline keeps, for a set of `capacity` positions and so many tokens to be generated.
using Baseline = std::function<AnySelection(index_t capacity, index_t tokens)>;

inline Baseline sliding_window() {
  return [](index_t, index_t) { return any_selection(recycled::SlidingWindow{}); };
}
inline Baseline streaming_llm() {
  return [](index_t, index_t) { return any_selection(recycled::StreamingLlm{}); };
}
/// Half of the set for what is recent, as in H2O. `window`: prompt queries whose weights are gathered.
inline Baseline heavy_hitters(index_t window) {
  return [window](index_t capacity, index_t) {
    return any_selection(
        recycled::HeavyHitters{.recent = std::max(capacity / 2, index_t{1}), .observation_window = window});
  };
}
/// A quarter of it.
inline Baseline keyformer(index_t window) {
  return [window](index_t capacity, index_t tokens) {
    return any_selection(recycled::Keyformer{
        .recent = std::max(capacity / 4, index_t{1}), .observation_window = window, .tokens = tokens});
  };
}

}  // namespace examples
