// The rows that a layer has been fed, for tests that know which of them a step reads.
#pragma once

#include <recycled/recycled.hpp>
#include <vector>

#include "reference/attention.hpp"
#include "reference/decoder.hpp"
#include "reference/random.hpp"

namespace reference {

/// Keys and values as a cache of T holds them, and attention over any of them.
template <recycled::Scalar T>
class Fed {
 public:
  explicit Fed(const recycled::Shape& shape)
      : shape_(recycled::detail::checked<T>(shape)), keys_(at(shape_.kv_heads)), values_(at(shape_.kv_heads)) {}

  void add(const Token& token) {
    const auto part = [](const std::vector<float>& all, index_t g, index_t dim) {
      const std::vector<float> own(all.begin() + g * dim, all.begin() + (g + 1) * dim);
      return rounded<T>(own);
    };
    for (index_t g = 0; g < shape_.kv_heads; ++g) {
      keys_[at(g)].push_back(part(token.key, g, shape_.head_dim));
      values_[at(g)].push_back(part(token.value, g, shape_.value_dim));
    }
  }
  void truncate(index_t length) {
    for (Rows* rows : {keys_.data(), values_.data()}) {
      for (index_t g = 0; g < shape_.kv_heads; ++g) rows[g].resize(at(length));
    }
  }
  /// Of the query rows of KV head `g`, over `seen`.
  std::vector<Attention> attend(index_t g, const std::vector<float>& query, const Positions& seen,
                                const recycled::AttentionOptions& options = {}) const {
    std::vector<Attention> rows;
    const index_t dim = shape_.head_dim;
    for (index_t h = g * shape_.group(); h < (g + 1) * shape_.group(); ++h)
      rows.push_back(reference::attend({query.data() + h * dim, at(dim)}, keys_[at(g)], values_[at(g)], seen, options));
    return rows;
  }

 private:
  recycled::Shape shape_;
  std::vector<Rows> keys_;  // for each KV head [position][dim]
  std::vector<Rows> values_;
};

}  // namespace reference
