#pragma once

#include "recycled/schedule/schedule.hpp"

namespace recycled::inline RECYCLED_ABI {

/// Keeps what the prompt chose, for ever: SnapKV (Li et al. 2024) with the selection's observation window.
struct NeverFull {
  static StepKind decide(const StepInfo& /*info*/) { return StepKind::recycled; }
};

}  // namespace recycled::inline RECYCLED_ABI
