#pragma once

#include <algorithm>
#include <vector>

#include "recycled/schedule/schedule.hpp"

namespace recycled::inline RECYCLED_ABI {

/// Every KV head takes a full step when its queries have turned away from those of its last one, and finds out how far
/// is too far: each full step measures whether the set that it replaces had gone stale, and the head's threshold
/// rises if it had and sinks if it had not, until `late` of the refreshes come too late. Heads that copy or retrieve
/// refresh at every other token then, calm ones hardly ever, and nothing has to be tuned for a model.
///
/// (Not the paper's. Such a feedback is known as adaptive conformal inference: Gibbs and Candès, 2021.)
struct SelfCalibrating {
  /// Share of refreshes that may find a stale set, in (0, 1): less reads more, and loses less.
  float late = 0.3F;
  float stale = 0.8F;  ///< a set that held less than this of what the new one holds had gone stale, in [0, 1]
  /// Steps from one full step to the next at most, at least 1; of other heads and layers up to a quarter fewer, so that
  /// calm ones do not all refresh at the same token.
  index_t longest = 64;
  /// [kv_heads]: the least cosine that still recycles, where the calibration stands. Empty at first; those of an
  /// earlier sequence of the same layer spare a new one its learning.
  std::vector<float> thresholds = {};

  static constexpr bool per_head = true;

  StepKind decide(const StepInfo& info) {
    if (static_cast<index_t>(thresholds.size()) < info.kv_heads) reserve(info.kv_heads);
    if (is_overdue(info, longest)) return StepKind::full;
    // A NaN compares false: a query that is no number takes the safe way.
    return least_cosine(info.queries, info.full_queries, info.head_dim) >= threshold(info.kv_head) ? StepKind::recycled
                                                                                                   : StepKind::full;
  }
  void reserve(index_t kv_heads) { thresholds.resize(static_cast<std::size_t>(kv_heads), first_threshold); }
  void observe(const Refresh& refresh) noexcept {
    const bool was_late = !(refresh.retained_mass >= stale);
    float& t = threshold(refresh.kv_head);
    // Both steps cancel when `late` of the refreshes were late.
    t = std::clamp(t + (was_late ? step * (1 - late) : -step * late), 0.0F, highest_threshold);
  }
  template <class Io>
  void transfer(Io& io) {
    io(thresholds);
  }
  void validate() const {
    detail::require(late > 0 && late < 1, "SelfCalibrating.late", late, "between 0 and 1");
    detail::require(stale >= 0 && stale <= 1, "SelfCalibrating.stale", stale, "0 to 1");
    detail::require(longest >= 1, "SelfCalibrating.longest", longest, "at least 1");
    for (const float t : thresholds)
      detail::require(t >= 0 && t <= highest_threshold, "SelfCalibrating.thresholds", t, "0 to 1.01");
  }

 private:
  static constexpr float first_threshold = 0.7F;
  static constexpr float highest_threshold = 1.01F;  // a full step at every token
  static constexpr float step = 0.1F;

  float& threshold(index_t kv_head) { return thresholds[static_cast<std::size_t>(kv_head)]; }
};

}  // namespace recycled::inline RECYCLED_ABI
