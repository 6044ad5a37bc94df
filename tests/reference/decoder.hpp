// A slow, obvious model of Recycled Attention: the paper, word for word, in long double. It keeps the full cache as
// rows and the recycle cache as positions, and it sorts where the library selects.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "reference/head.hpp"

namespace reference {

class Layer {
 public:
  Layer(const Options& options, Schedule schedule)
      : options_(options),
        schedule_(schedule.another ? schedule.another() : std::move(schedule)),
        heads_(at(options.shape.kv_heads)) {
    for (Head& head : heads_) head.full_queries.assign(at(group() * options_.shape.head_dim), 0);
  }

  const Options& options() const { return options_; }
  const Head& head(index_t g) const { return heads_[at(g)]; }
  index_t length() const { return heads_.front().length(); }

  /// Causal attention of a prompt's tokens: one result for each token and query head.
  std::vector<Attention> prefill(const std::vector<Token>& tokens) {
    std::vector<Attention> result;
    for (const Token& token : tokens) {
      append(token);
      const Positions seen = seen_by(length() - 1, options_.attention);
      for (index_t g = 0; g < options_.shape.kv_heads; ++g) {
        for (const Attention& row : attend_group(g, token.query, seen)) result.push_back(row);
      }
      prompt_.push_back(token.query);
      if (static_cast<index_t>(prompt_.size()) > options_.observation_window) prompt_.erase(prompt_.begin());
    }
    remember(prompt_.back());
    return result;
  }

  /// A token of a prompt that somebody else ran.
  void append(const Token& token) {
    const index_t dim = options_.shape.head_dim, value_dim = options_.shape.value_dim;
    for (index_t g = 0; g < options_.shape.kv_heads; ++g) {
      heads_[at(g)].keys.push_back({token.key.data() + g * dim, token.key.data() + (g + 1) * dim});
      heads_[at(g)].values.push_back({token.value.data() + g * value_dim, token.value.data() + (g + 1) * value_dim});
    }
  }

  /// One decode step: a result for each query head. `compared` is for the schedule alone.
  std::vector<Attention> step(const Token& token, const std::vector<float>& compared = {}) {
    if (!prompt_.empty()) choose_from_prompt();
    append(token);
    ++step_;
    const std::vector<float>& asked = compared.empty() ? token.query : compared;
    const std::vector<bool> full = decide(asked);
    std::vector<Attention> result;
    for (index_t g = 0; g < options_.shape.kv_heads; ++g) {
      Head& head = heads_[at(g)];
      head.last = {};
      head.last.full = full[at(g)];
      for (const Attention& row : full[at(g)] ? full_step(head, g, token.query) : recycled_step(head, g, token.query)) {
        result.push_back(row);
      }
      head.age = full[at(g)] ? 0 : head.age + 1;
      if (full[at(g)]) head.full_queries = queries_of(asked, g);
      if (head.last.measured && schedule_.learn) schedule_.learn(g, head.last.retained_mass);
    }
    return result;
  }

  void truncate(index_t length) {
    const index_t removed = this->length() - length;
    const bool prompted = !prompt_.empty();
    for (index_t i = 0; i < removed && !prompt_.empty(); ++i) prompt_.pop_back();
    if (removed > 0 && !prompt_.empty()) remember(prompt_.back());
    step_ = std::max(step_ - removed, index_t{0});
    for (Head& head : heads_) {
      head.keys.resize(at(length));
      head.values.resize(at(length));
      head.scores.resize(std::min(head.scores.size(), at(length)));
      head.remembered.resize(prompted && prompt_.empty() ? 0 : std::min(head.remembered.size(), at(length)));
      head.age = std::max(head.age - removed, index_t{0});
      const auto gone = [length](index_t p) { return p >= length; };
      if (length == 0 || std::any_of(head.evictors.begin(), head.evictors.end(), gone)) head.must_refresh = true;
      std::erase_if(head.held, gone);
    }
  }

  /// Where float and long double may disagree about nearly equal scores, one set is as good as the other.
  void adopt(index_t g, const Positions& held) { heads_[at(g)].held = held; }
  /// How far apart the last score that the prompt's choice took and the first that it left were, in the closest head.
  /// Nobody sees that choice before the step that makes it has gone on from there. And how close a schedule's call was:
  /// thresholds are sums, and the cosine of queries of a single dimension is 1.
  Real closest_call() const { return std::min(prompt_gap_, *schedule_.gap); }

 private:
  index_t group() const { return options_.shape.group(); }
  std::vector<float> queries_of(const std::vector<float>& queries, index_t g) const {
    const index_t size = group() * options_.shape.head_dim;
    return {queries.data() + g * size, queries.data() + (g + 1) * size};
  }

  /// The last prompt token counts as a full step: its query is the one to compare with.
  void remember(const std::vector<float>& query) {
    step_ = 0;
    for (index_t g = 0; g < options_.shape.kv_heads; ++g) {
      heads_[at(g)].full_queries = queries_of(query, g);
      heads_[at(g)].must_refresh = true;
    }
  }

  std::vector<bool> decide(const std::vector<float>& asked) const {
    const index_t kv_heads = options_.shape.kv_heads;
    Question layer{step_, 0, 0, options_.shape.head_dim, asked, {}, options_.layer, kv_heads};
    for (const Head& head : heads_) {
      layer.age = std::max(layer.age, head.age + 1);
      layer.full_queries.insert(layer.full_queries.end(), head.full_queries.begin(), head.full_queries.end());
    }
    const bool whole_layer = !schedule_.per_head && schedule_.full(layer);
    std::vector<bool> full;
    for (index_t g = 0; g < options_.shape.kv_heads; ++g) {
      const Head& head = heads_[at(g)];
      const Question own{step_,          head.age + 1, g, layer.head_dim, queries_of(asked, g), head.full_queries,
                         options_.layer, kv_heads};
      full.push_back((schedule_.per_head ? schedule_.full(own) : whole_layer) || head.must_refresh);
    }
    return full;
  }

  std::vector<Attention> attend_group(index_t g, const std::vector<float>& queries, const Positions& seen) const {
    const std::size_t dim = at(options_.shape.head_dim);
    const std::vector<float> own = queries_of(queries, g);
    std::vector<Attention> result;
    for (std::size_t r = 0; r < own.size(); r += dim) {
      result.push_back(attend({own.data() + r, dim}, head(g).keys, head(g).values, seen, options_.attention));
    }
    return result;
  }

  /// For every position the largest weight in the group, as a logarithm; -infinity where it is not seen.
  static std::vector<Real> scores_of(const std::vector<Attention>& rows, const Positions& seen, index_t length) {
    std::vector<Real> scores(at(length), -infinity);
    for (const Attention& row : rows) {
      for (std::size_t i = 0; i < seen.size(); ++i) {
        scores[at(seen[i])] = std::max(scores[at(seen[i])], row.logits[i] - row.lse);
      }
    }
    return scores;
  }

  /// The mean score over the prompt's last queries makes the first set.
  void choose_from_prompt() {
    const index_t queries = static_cast<index_t>(prompt_.size());
    for (index_t g = 0; g < options_.shape.kv_heads; ++g) {
      std::vector<Real> mean(at(length()), 0);
      for (index_t i = 0; i < queries; ++i) {
        const Positions seen = seen_by(length() - queries + i, options_.attention);
        const std::vector<Real> one = scores_of(attend_group(g, prompt_[at(i)], seen), seen, length());
        for (std::size_t j = 0; j < mean.size(); ++j) mean[j] += std::exp(one[j]) / static_cast<Real>(queries);
      }
      for (Real& score : mean) score = std::log(score);
      heads_[at(g)].remembered.clear();
      heads_[at(g)].last = {};
      choose(heads_[at(g)], mean);
      heads_[at(g)].age = 0;
      prompt_gap_ = std::min(prompt_gap_, heads_[at(g)].last.gap);
    }
    prompt_.clear();
  }

  /// Weights averaged with those of the full steps before; a token that is new begins with none.
  std::vector<Real> remember(Head& head, const std::vector<Real>& measured) const {
    const Real share = head.remembered.empty() ? 1 : 1 - options_.memory;
    head.remembered.resize(measured.size(), 0);
    std::vector<Real> scores;
    for (std::size_t j = 0; j < measured.size(); ++j) {
      head.remembered[j] += share * (std::exp(measured[j]) - head.remembered[j]);
      if (measured[j] == -infinity) head.remembered[j] = 0;  // out of sight
      scores.push_back(std::log(head.remembered[j]));
    }
    return scores;
  }

  /// Pool, sort, keep the first K; among equal scores the lower positions.
  void choose(Head& head, const std::vector<Real>& measured) const {
    const std::vector<Real> scores = options_.memory > 0 ? remember(head, measured) : measured;
    const index_t length = static_cast<index_t>(scores.size()), reach = options_.pool / 2;
    head.scores = scores;
    for (index_t j = 0; j < length; ++j) {
      for (index_t i = std::max(j - reach, index_t{0}); i <= std::min(j + reach, length - 1); ++i) {
        head.scores[at(j)] = std::max(head.scores[at(j)], scores[at(i)]);
      }
    }
    Positions order = seen_by(length - 1, options_.attention);
    std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) { return head.rank(a) > head.rank(b); });
    const std::size_t kept = std::min(order.size(), at(options_.capacity));
    if (kept < order.size()) head.last.gap = gap(head, order, kept);
    order.resize(kept);
    std::sort(order.begin(), order.end());
    head.held = order;
    head.evictors = {length - 1};
    head.must_refresh = false;
  }

  std::vector<Attention> full_step(Head& head, index_t g, const std::vector<float>& query) {
    const Positions seen = seen_by(length() - 1, options_.attention);
    const std::vector<Attention> result = attend_group(g, query, seen);
    Positions old = head.held;
    old.push_back(length() - 1);
    const auto left_out = [&](index_t p) { return std::find(old.begin(), old.end(), p) == old.end(); };
    head.last.measured = !head.must_refresh && std::any_of(seen.begin(), seen.end(), left_out);
    choose(head, scores_of(result, seen, length()));
    ++head.counts.full;
    head.counts.rows += seen.size();
    if (!head.last.measured) return result;
    for (const Attention& row : result) {
      const Real share = mass(row, seen, old) / mass(row, seen, head.held);
      head.last.retained_mass = std::min(head.last.retained_mass, share);
    }
    ++head.counts.measured;
    head.counts.retained_mass += head.last.retained_mass;
    return result;
  }

  /// Attend to the set and the token itself; then, of more than K, the lowest score leaves.
  std::vector<Attention> recycled_step(Head& head, index_t g, const std::vector<float>& query) {
    const index_t own = length() - 1;
    const Positions seen = seen_by(own, options_.attention);
    const auto out_of_sight = [&](index_t p) { return !std::binary_search(seen.begin(), seen.end(), p); };
    if (std::erase_if(head.held, out_of_sight) > 0) head.evictors.push_back(own);
    head.held.push_back(own);
    const std::vector<Attention> result = attend_group(g, query, head.held);
    ++head.counts.recycled;
    head.counts.rows += head.held.size();
    if (static_cast<index_t>(head.held.size()) > options_.capacity) {
      // The set ascends, so the first of equals is the lowest position, and of newcomers the oldest.
      Positions order = head.held;
      std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) { return head.rank(a) < head.rank(b); });
      head.last.gap = gap(head, order, 1);
      std::erase(head.held, order[0]);
      head.evictors.push_back(own);
    }
    return result;
  }

  /// By how much ranks would have to change for others to stand before place `cut` of an order. Equal ones are equal in
  /// any arithmetic, because the pool made them of one and the same: what counts is how near the next ones are.
  static Real gap(const Head& head, const Positions& order, std::size_t cut) {
    const Real last = head.rank(order[cut - 1]);
    const bool tied = head.rank(order[cut]) == last;
    Real nearest = infinity;
    for (std::size_t i = 0; i < order.size(); ++i) {
      const Real other = head.rank(order[i]);
      if (other != last && (i >= cut || tied)) nearest = std::min(nearest, std::abs(other - last));
    }
    return nearest;
  }

  Options options_;
  Schedule schedule_;
  std::vector<Head> heads_;
  std::vector<std::vector<float>> prompt_;  // the queries that choose the first set
  index_t step_ = 0;
  Real prompt_gap_ = infinity;
};

}  // namespace reference
