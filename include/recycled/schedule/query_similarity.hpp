#pragma once

#include "recycled/schedule/schedule.hpp"

namespace recycled::inline RECYCLED_ABI {

/// The paper's dynamic schedule, for each layer on its own: at every `stride`-th decode step the query, averaged over
/// the layer's query heads, is compared with the one of the last full step; a cosine above `threshold` recycles. Layers
/// take turns with their checks, see FixedStride. The paper takes stride 5 or 10 and threshold 0.85 (Llama 3.1 8B) or
/// 0.95 (Qwen2 7B).
struct QuerySimilarity {
  index_t stride = 10;      ///< at least 1
  float threshold = 0.85F;  ///< in [-1, 1]; 1 is a full step at every check

  StepKind decide(const StepInfo& info) const {
    if ((info.step + info.layer) % stride != 0) return StepKind::recycled;
    // A NaN compares false: a query that is no number takes the safe way.
    return mean_cosine(info.queries, info.full_queries, info.head_dim) > threshold ? StepKind::recycled
                                                                                   : StepKind::full;
  }
  void validate() const {
    detail::require(stride >= 1, "QuerySimilarity.stride", stride, "at least 1");
    detail::require(threshold >= -1 && threshold <= 1, "QuerySimilarity.threshold", threshold, "-1 to 1");
  }
};

}  // namespace recycled::inline RECYCLED_ABI
