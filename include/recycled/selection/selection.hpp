// What to keep: the concept.
#pragma once

#include <limits>
#include <span>

#include "recycled/types/error.hpp"

namespace recycled::inline RECYCLED_ABI {

/// What a full step measured for one KV head: for every position the logarithm of its attention weight, the largest
/// over the group's query heads (with an observation window: of the mean of that over its queries). Not above 0;
/// -infinity where the token doesn't see the position. At a sketched step they are what the sketch makes of them, to
/// some tenths, and may be a little above 0.
struct Scores {
  std::span<const float> log_weights;  ///< [length]
  bool of_prompt = false;              ///< they choose the first set after a prompt: what was before counts no more
  index_t queries = 1;                 ///< of so many queries they are the mean
};

/// What a recycled step attended to, slot by slot; entries keep their slots until they leave.
struct Attended {
  std::span<const index_t> positions;
  std::span<const float> log_weights;  ///< as in Scores
};

/// The rank of a token that joined since the last full step: it has no score yet and outranks every scored one. A
/// selection that wants to pin an entry for good ranks it infinity.
inline constexpr float newcomer_rank = std::numeric_limits<float>::max();

/// A selection is copyable, moves without throwing, and ranks positions; the library keeps the K of highest rank (ties
/// to the lower position), and at a recycled step the entry of lowest rank leaves (of equals, the lowest position: the
/// oldest). Every KV head has its own copy of the object, so state needs no index; heads may work in parallel, on the
/// executor's threads. `rank` and `attended` must not throw; where assigning a new one does, in `truncate` or `clear`,
/// some layers and heads may have been taken back, and the call is to be made again. Optional members:
///     index_t observation_window            prompt queries whose mean weights choose the first set; 1 if absent
///     bool ranks_are_scores() const         whether rank() would only copy: then it is not called
///     void attended(const Attended&, std::span<float> ranks)
///                                            after a recycled step, before an entry leaves; may change ranks
///     void reserve(index_t length)          before a step over so many positions, on the caller's thread; may throw
///     void truncate(index_t length)         positions from `length` on are gone; must not throw
///     void transfer(Io& io)                 names what it remembers, to be saved, see Learnt
///     void validate() const                 throws std::invalid_argument
template <class S>
concept Selection = detail::Value<S> && requires(S& selection, const Scores& scores, std::span<float> ranks) {
  selection.rank(scores, ranks);
};

namespace detail {

/// A rank as the library keeps it. One that is no number would never be the lowest; it becomes -infinity.
inline float sane_rank(float rank) noexcept { return rank == rank ? rank : -std::numeric_limits<float>::infinity(); }

template <class S>
index_t observation_window(const S& selection) {
  if constexpr (requires { selection.observation_window; }) {
    return selection.observation_window;
  } else {
    return 1;
  }
}

template <class S>
bool ranks_are_scores(const S& selection) {
  if constexpr (requires { selection.ranks_are_scores(); }) {
    return selection.ranks_are_scores();
  } else {
    return false;
  }
}

template <class S>
inline constexpr bool wants_attended = requires(S& selection, const Attended& attended, std::span<float> ranks) {
  selection.attended(attended, ranks);
};

}  // namespace detail

}  // namespace recycled::inline RECYCLED_ABI
