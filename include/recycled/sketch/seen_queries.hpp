// The last queries that a layer has seen: they say what the axes of its keys are for.
#pragma once

#include <algorithm>
#include <span>

#include "recycled/types/archive.hpp"
#include "recycled/types/memory.hpp"
#include "recycled/types/shape.hpp"

namespace recycled::inline RECYCLED_ABI {

/// The queries of the last 64 tokens that were noted, KV head by KV head. A value.
class SeenQueries {
 public:
  static constexpr index_t most_tokens = 64;

  /// `shape` is checked.
  explicit SeenQueries(const Shape& shape)
      : kv_heads_(shape.kv_heads),
        group_(shape.group()),
        dim_(shape.head_dim),
        queries_(most_tokens * shape.query_size()) {}

  /// Takes in queries [tokens, query_heads, head_dim].
  void add(std::span<const float> queries) noexcept {
    const index_t size = kv_heads_ * token_size(), given = static_cast<index_t>(queries.size()) / size;
    for (index_t t = std::max(given - most_tokens, index_t{0}); t < given; ++t, ++count_) {
      const float* const token = queries.data() + t * size;
      for (index_t g = 0; g < kv_heads_; ++g) {
        std::copy_n(token + g * token_size(), token_size(),
                    queries_.data() + begin(g) + count_ % most_tokens * token_size());
      }
    }
  }
  /// The same for a decode step's, of which some will do.
  void add_step(std::span<const float> query, index_t length) noexcept {
    if (!full() || length % noted_apart == 0) add(query);
  }
  void clear() noexcept { count_ = 0; }

  /// Tokens noted since the beginning.
  index_t count() const noexcept { return count_; }
  bool full() const noexcept { return count_ >= most_tokens; }
  /// How many rows are held of each KV head, and one of them.
  index_t rows() const noexcept { return std::min(count_, most_tokens) * group_; }
  const float* row(index_t g, index_t i) const noexcept { return queries_.data() + begin(g) + i * dim_; }

  template <class Io>
  void transfer_count(Io& io) {
    io.count(count_, 0, detail::most_positions, "queries seen");
  }
  /// Of one KV head, after the count.
  template <class Io>
  void transfer(Io& io, index_t g) {
    io.array(queries_.data() + begin(g), rows() * dim_);
  }

 private:
  static constexpr index_t noted_apart = 8;  // steps: the queries seen then reach 512 tokens back

  index_t token_size() const noexcept { return group_ * dim_; }
  index_t begin(index_t g) const noexcept { return g * most_tokens * token_size(); }

  index_t kv_heads_;
  index_t group_;
  index_t dim_;
  Array<float> queries_;  // [kv_heads, most_tokens, group, head_dim], the newest over the oldest
  index_t count_ = 0;
};

}  // namespace recycled::inline RECYCLED_ABI
