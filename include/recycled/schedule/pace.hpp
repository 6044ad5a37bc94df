// Asks a schedule at every step, and tells it what came of its answers.
#pragma once

#include <algorithm>
#include <limits>
#include <span>

#include "recycled/schedule/schedule.hpp"
#include "recycled/types/archive.hpp"
#include "recycled/types/memory.hpp"
#include "recycled/types/shape.hpp"

namespace recycled::inline RECYCLED_ABI {

/// What a layer keeps for its schedule: the object itself, how many steps there were, and of every KV head how long ago
/// its last refresh was and with which queries. Arguments are checked by the caller.
template <Schedule Policy>
class Pace {
 public:
  /// `layer`: LayerOptions.layer.
  Pace(const Policy& schedule, const Shape& shape, index_t layer)
      : shape_(shape),
        layer_(layer),
        initial_(schedule),
        schedule_(schedule),
        kinds_(shape.kv_heads, StepKind::full),
        ages_(shape.kv_heads, 0),
        full_queries_(shape.query_size(), 0.0F) {
    detail::validate(schedule);
    if constexpr (requires { initial_.reserve(shape.kv_heads); }) {
      initial_.reserve(shape.kv_heads);
      schedule_ = initial_;
    }
  }
  const Policy& schedule() const noexcept { return schedule_; }
  const Policy& initial() const noexcept { return initial_; }

  /// The prompt ends here, with these queries of its last token: that counts as a full step of all heads.
  void begin(std::span<const float> queries) noexcept {
    std::copy(queries.begin(), queries.end(), full_queries_.data());
    std::fill(ages_.begin(), ages_.end(), index_t{0});
    step_ = 0;
  }
  /// As begin(), with queries that nobody knows: NaN is similar to nothing, which leads to a full step.
  void begin_anywhere() noexcept {
    std::fill(full_queries_.begin(), full_queries_.end(), std::numeric_limits<float>::quiet_NaN());
  }

  /// The kind of the next step for every KV head, asked once for all or head by head. `queries` [query_heads,
  /// head_dim] are what the schedule compares, `length` is with the new token.
  const Array<StepKind>& decide(std::span<const float> queries, index_t length) {
    const std::span<const float> full{full_queries_.data(), queries.size()};
    StepInfo info{.step = step_ + 1,
                  .length = length,
                  .layer = layer_,
                  .kv_heads = shape_.kv_heads,
                  .head_dim = shape_.head_dim,
                  .queries = queries,
                  .full_queries = full};
    if constexpr (detail::per_head<Policy>) {
      for (index_t g = 0; g < shape_.kv_heads; ++g) {
        info.kv_head = g;
        info.age = ages_[g] + 1;
        info.queries = group_of(queries, g);
        info.full_queries = group_of(full, g);
        kinds_[g] = schedule_.decide(info);
      }
    } else {
      info.age = *std::max_element(ages_.begin(), ages_.end()) + 1;
      std::fill(kinds_.begin(), kinds_.end(), schedule_.decide(info));
    }
    return kinds_;
  }

  // What came of it: first that there was a step, then what each head did, in their order, and what it cost. All on
  // the calling thread.
  void stepped() noexcept { ++step_; }
  void recycled(index_t g) noexcept { ++ages_[g]; }
  void refreshed(index_t g, std::span<const float> queries) noexcept {
    ages_[g] = 0;
    const std::span<const float> group = group_of(queries, g);
    std::copy(group.begin(), group.end(), full_queries_.data() + g * shape_.group() * shape_.head_dim);
  }
  void spent(std::uint64_t bytes_read, std::uint64_t bytes_full) noexcept {
    if constexpr (requires(Policy & policy, const Cost& cost) { policy.spent(cost); }) {
      schedule_.spent(Cost{layer_, bytes_read, bytes_full});
    }
  }
  void measured(index_t g, float retained_mass) noexcept {
    if constexpr (requires(Policy & policy, const Refresh& refresh) { policy.observe(refresh); }) {
      schedule_.observe(Refresh{step_, g, shape_.kv_heads, retained_mass});
    }
  }

  /// So many steps never were.
  void take_back(index_t steps) noexcept {
    for (index_t& age : ages_) age = std::max(age - steps, index_t{0});
    step_ = std::max(step_ - steps, index_t{0});
  }
  void clear() {
    schedule_ = initial_;
    std::fill(ages_.begin(), ages_.end(), index_t{0});
    std::fill(full_queries_.begin(), full_queries_.end(), 0.0F);
    step_ = 0;
  }

  template <class Io>
  void transfer(Io& io) {
    io.count(step_, 0, detail::most_positions, "steps");
    for (index_t& age : ages_) io.count(age, 0, detail::most_positions, "age of a set");
    io.array(full_queries_.data(), full_queries_.size());
    io.learnt(schedule_, "schedule");
    if constexpr (Io::loads && requires { schedule_.reserve(shape_.kv_heads); }) schedule_.reserve(shape_.kv_heads);
  }

 private:
  std::span<const float> group_of(std::span<const float> queries, index_t g) const {
    const auto size = static_cast<std::size_t>(shape_.group() * shape_.head_dim);
    return queries.subspan(static_cast<std::size_t>(g) * size, size);
  }

  Shape shape_;
  index_t layer_ = 0;
  Policy initial_;
  Policy schedule_;
  Array<StepKind> kinds_;      // [kv_heads]: the last answer
  Array<index_t> ages_;        // [kv_heads]: steps since the last refresh
  Array<float> full_queries_;  // [query_heads, head_dim]: of every head's last refresh
  index_t step_ = 0;
};

}  // namespace recycled::inline RECYCLED_ABI
