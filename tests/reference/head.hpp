// What the model of a layer knows of one KV head.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "reference/attention.hpp"
#include "reference/schedules.hpp"

namespace reference {

using Real = long double;
using Positions = std::vector<index_t>;
inline constexpr Real infinity = std::numeric_limits<Real>::infinity();

/// One token of one layer: queries [query_heads, head_dim], keys [kv_heads, head_dim], values [kv_heads, value_dim].
struct Token {
  std::vector<float> query, key, value;
};

struct Options {
  recycled::Shape shape = {};  // value_dim is filled in
  recycled::AttentionOptions attention = {};
  index_t capacity = 1;
  index_t pool = 7;
  index_t observation_window = 1;
  Real memory = 0;
  index_t layer = 0;  // which one of a model
};

/// What one KV head did in a step.
struct HeadStep {
  bool full = false;
  bool measured = false;
  Real retained_mass = 1;
  Real gap = infinity;  // how far ranks are from those that would have chosen others
};

struct HeadCounts {
  std::uint64_t full = 0, recycled = 0, rows = 0, measured = 0;
  Real retained_mass = 0;
};

struct Head {
  Rows keys, values;
  Positions held;                // the recycle cache, ascending
  std::vector<Real> scores;      // of the last full step, pooled; positions behind them joined since and have none yet
  std::vector<Real> remembered;  // weights, averaged over full steps, where the selection has a memory
  Positions evictors;            // tokens that cost another its place since the set was chosen, and the one that chose
  bool must_refresh = true;
  index_t age = 0;
  std::vector<float> full_queries;
  HeadCounts counts;
  HeadStep last;

  index_t length() const { return static_cast<index_t>(keys.size()); }
  Real rank(index_t p) const { return at(p) < scores.size() ? scores[at(p)] : infinity; }
};

/// The share of the attention mass that is held.
inline Real mass(const Attention& row, const Positions& seen, const Positions& held) {
  Real sum = 0;
  for (std::size_t i = 0; i < seen.size(); ++i) {
    if (std::find(held.begin(), held.end(), seen[i]) != held.end()) sum += row.weights[i];
  }
  return sum;
}

}  // namespace reference
