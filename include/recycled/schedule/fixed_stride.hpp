#pragma once

#include "recycled/schedule/schedule.hpp"

namespace recycled::inline RECYCLED_ABI {

/// A full step at every `stride`-th decode step (paper, "Schedule", where it is the same one for all layers). Here
/// layer l is l steps ahead of the first: so it is another token that is slow for each of them.
struct FixedStride {
  index_t stride = 10;  ///< at least 1; 1 is full attention at every step

  StepKind decide(const StepInfo& info) const {
    return (info.step + info.layer) % stride == 0 ? StepKind::full : StepKind::recycled;
  }
  void validate() const { detail::require(stride >= 1, "FixedStride.stride", stride, "at least 1"); }
};

}  // namespace recycled::inline RECYCLED_ABI
