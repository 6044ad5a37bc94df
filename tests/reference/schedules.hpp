// The schedules of the paper in plain code, for the model of a layer.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "recycled/types/config.hpp"

namespace reference {

using recycled::index_t;

inline std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// What a schedule is asked, for a layer or for one KV head.
struct Question {
  index_t step, age, kv_head, head_dim;
  std::vector<float> queries, full_queries;  // [query heads in scope, head_dim]
  index_t layer = 0, kv_heads = 1;
};

/// Whether a step is full; `learn` receives KV head and retained mass after a measured full step.
struct Schedule {
  std::function<bool(const Question&)> full;
  bool per_head = false;
  std::function<void(index_t, long double)> learn = {};
  std::function<Schedule()> another = {};  ///< for a schedule that learns or compares: one that has not yet
  /// How near any comparison of its came to being equal, where float arithmetic may have found otherwise.
  std::shared_ptr<long double> gap = std::make_shared<long double>(1);

  static void compare(long double a, long double b, long double& gap) { gap = std::min(gap, std::abs(a - b)); }
};

inline Schedule always_full() {
  return {[](const Question&) { return true; }};
}

inline Schedule never_full() {
  return {[](const Question&) { return false; }};
}

inline Schedule fixed_stride(index_t stride) {
  return {[stride](const Question& q) { return (q.step + q.layer) % stride == 0; }};
}

inline std::vector<long double> mean_query(const std::vector<float>& queries, index_t dim) {
  std::vector<long double> mean(at(dim), 0);
  for (std::size_t i = 0; i < queries.size(); ++i) {
    mean[i % mean.size()] += static_cast<long double>(queries[i]) * dim / static_cast<long double>(queries.size());
  }
  return mean;
}

inline Schedule query_similarity(index_t stride, float threshold) {
  Schedule made;
  made.full = [stride, threshold, gap = made.gap](const Question& q) {
    if ((q.step + q.layer) % stride != 0) return false;
    const std::vector<long double> now = mean_query(q.queries, q.head_dim);
    const std::vector<long double> then = mean_query(q.full_queries, q.head_dim);
    long double dot = 0, a = 0, b = 0;
    for (std::size_t d = 0; d < now.size(); ++d) {
      dot += now[d] * then[d];
      a += now[d] * now[d];
      b += then[d] * then[d];
    }
    const long double found = dot / std::sqrt(a) / std::sqrt(b);
    Schedule::compare(found, threshold, *gap);
    return !(found > static_cast<long double>(threshold));
  };
  made.another = [=] { return query_similarity(stride, threshold); };
  return made;
}

inline long double cosine(const float* a, const float* b, index_t dim) {
  long double ab = 0, aa = 0, bb = 0;
  for (index_t d = 0; d < dim; ++d) {
    ab += static_cast<long double>(a[d]) * b[d];
    aa += static_cast<long double>(a[d]) * a[d];
    bb += static_cast<long double>(b[d]) * b[d];
  }
  return ab / std::sqrt(aa * bb);
}

/// Every KV head refreshes when one of its queries has turned too far; how far that is moves with what refreshes find.
inline Schedule self_calibrating(long double late, index_t longest = 64) {
  const auto thresholds = std::make_shared<std::map<index_t, long double>>();
  const auto threshold = [thresholds](index_t g) -> long double& {
    return thresholds->try_emplace(g, 0.7L).first->second;
  };
  const auto gap = std::make_shared<long double>(1);
  return {[=](const Question& q) {
            long double least = 1;
            for (index_t i = 0; at(i) < q.queries.size(); i += q.head_dim) {
              least = std::min(least, cosine(q.queries.data() + i, q.full_queries.data() + i, q.head_dim));
            }
            Schedule::compare(least, threshold(q.kv_head), *gap);
            const index_t fewer = (q.layer * q.kv_heads + q.kv_head) % (longest / 4 + 1);
            return q.age >= longest - fewer || least < threshold(q.kv_head);
          },
          true,
          [=](index_t g, long double retained_mass) {
            Schedule::compare(retained_mass, 0.8L, *gap);
            const long double step = retained_mass < 0.8L ? 0.1L * (1 - late) : -0.1L * late;
            threshold(g) = std::clamp(threshold(g) + step, 0.0L, 1.01L);
          },
          [=] { return self_calibrating(late, longest); }, gap};
}

}  // namespace reference
