// Eviction as one writes it down: attention over what is kept, sums of what it saw, and the lightest leaves.
#pragma once

#include <algorithm>
#include <functional>
#include <map>

#include "reference/fed.hpp"
#include "reference/feed.hpp"

namespace reference {

/// One KV head that keeps the `recent` last positions and of the others those that gathered the most, in long double.
class Eviction {
 public:
  /// What the positions seen by the token at `query` gather by its step, from the largest weights of the group.
  using Share = std::function<std::vector<Real>(index_t query, const Positions&, const std::vector<Real>& weights)>;

  Eviction(const recycled::Shape& shape, index_t g, index_t capacity, index_t recent, Share share)
      : rows_(shape), g_(g), capacity_(capacity), recent_(recent), share_(std::move(share)) {}

  /// Every query of the prompt counts, or the last `window`: each for itself, or the mean of their weights for each.
  void prefill(const std::vector<Token>& tokens, index_t window, bool averaged) {
    std::map<index_t, Real> mean;
    const index_t length = static_cast<index_t>(tokens.size()), queries = std::min(window, length);
    for (const Token& token : tokens) {
      append(token);
      if (length_ <= length - queries) continue;
      const Positions seen = all();
      const std::vector<Real> weights = largest(token, seen);
      if (!averaged) gather(length_ - 1, seen, weights);
      for (std::size_t i = 0; i < seen.size(); ++i) mean[seen[i]] += weights[i] / static_cast<Real>(queries);
    }
    std::vector<Real> weights;
    for (const auto& [position, weight] : mean) weights.push_back(weight);
    for (index_t query = length - queries; averaged && query < length; ++query) gather(query, all(), weights);
    kept_ = all();
    choose();
  }
  void step(const Token& token, bool full) {
    append(token);
    full = full || must_refresh_;
    kept_.push_back(length_ - 1);
    if (full) kept_ = all();
    gather(length_ - 1, kept_, largest(token, kept_));
    full ? choose() : evict();
  }
  void truncate(index_t length) {
    must_refresh_ = must_refresh_ || last_evictor_ >= length;
    length_ = length;
    const auto gone = [length](index_t p) { return p >= length; };
    std::erase_if(kept_, gone);
    std::erase_if(gathered_, [&](const auto& entry) { return gone(entry.first); });
    rows_.truncate(length);
  }

  const Positions& kept() const { return kept_; }
  /// The least that any choice so far was clear by, relative to the weights: float arithmetic must be able to tell.
  Real gap() const { return gap_; }

 private:
  Positions all() const {
    Positions positions;
    for (index_t j = 0; j < length_; ++j) positions.push_back(j);
    return positions;
  }
  void append(const Token& token) {
    rows_.add(token);
    ++length_;
  }
  std::vector<Real> largest(const Token& token, const Positions& seen) const {
    std::vector<Real> weights(seen.size(), 0);
    for (const Attention& row : rows_.attend(g_, token.query, seen)) {
      for (std::size_t i = 0; i < seen.size(); ++i) weights[i] = std::max(weights[i], row.weights[i]);
    }
    return weights;
  }
  void gather(index_t query, const Positions& seen, const std::vector<Real>& weights) {
    const std::vector<Real> shares = share_(query, seen, weights);
    for (std::size_t i = 0; i < seen.size(); ++i) gathered_[seen[i]] += shares[i];
  }
  void choose() {
    must_refresh_ = false;
    last_evictor_ = length_ - 1;
    evict();
  }
  void evict() {
    Real gap = infinity;
    while (static_cast<index_t>(kept_.size()) > capacity_) {
      const index_t old = std::max(static_cast<index_t>(kept_.size()) - recent_, index_t{0});
      Positions order(kept_.begin(), kept_.begin() + old);
      std::sort(order.begin(), order.end(), [&](index_t a, index_t b) { return gathered_[a] < gathered_[b]; });
      gap = order.size() > 1 ? gathered_[order[1]] / gathered_[order[0]] - 1 : infinity;
      std::erase(kept_, order.empty() ? kept_.front() : order.front());
      last_evictor_ = length_ - 1;
    }
    gap_ = std::min(gap_, gap);
  }

  Fed<float> rows_;
  index_t g_, capacity_, recent_;
  Share share_;
  index_t length_ = 0;
  std::map<index_t, Real> gathered_;
  Positions kept_;
  bool must_refresh_ = false;
  index_t last_evictor_ = -1;
  Real gap_ = infinity;
};

}  // namespace reference
