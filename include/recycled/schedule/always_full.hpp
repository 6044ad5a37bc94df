#pragma once

#include "recycled/schedule/schedule.hpp"

namespace recycled::inline RECYCLED_ABI {

/// Exact attention at every step: what every other schedule is measured against. Keeps no recycle cache.
struct AlwaysFull {
  static constexpr bool recycles = false;
  static StepKind decide(const StepInfo& /*info*/) { return StepKind::full; }
};

}  // namespace recycled::inline RECYCLED_ABI
