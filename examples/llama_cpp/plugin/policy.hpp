// What the user asks of the plugin, and is told.
#pragma once

#include <algorithm>
#include <string>

#include "../../schedules.hpp"
#include "recycled_ggml.h"

namespace plugin {

using recycled::index_t;

/// What was done, in attention steps: a token in a layer.
using Counts = recycled_ggml_statistics;

/// K, as a count of rows or as a share of a conversation's length.
struct Capacity {
  index_t rows = 0;
  index_t share = 8;  ///< with rows 0: K is length / share

  /// Of a cache of `cells`, for a conversation of `length`.
  index_t of(index_t length, index_t cells) const {
    return rows > 0 ? std::min(rows, cells) : std::max(length / share, index_t{1});
  }
};

struct Policy {
  examples::NamedSchedule schedule{"exact", recycled::AlwaysFull{}};
  Capacity capacity;
  index_t from = 1024;    ///< shorter contexts are not recycled: there is little to win
  index_t sequences = 8;  ///< how many conversations are remembered at a time, each with K rows a layer

  bool recycles() const { return !std::holds_alternative<recycled::AlwaysFull>(schedule.schedule); }
};

/// The setting `name` (schedule, capacity, from or sequences) becomes `text`. Throws std::invalid_argument that begins
/// with `shown`, the name under which the user knows it.
inline void set(Policy& policy, const std::string& name, const std::string& text, const std::string& shown) {
  const auto count = [&](const std::string& number, index_t least) {
    const auto value = examples::parse_number<index_t>(shown, number);
    if (value >= least && value <= recycled::detail::most_positions) return value;
    throw std::invalid_argument(shown + " = " + text + ", expected " + std::to_string(least) + " to 2^40");
  };
  if (name == "schedule") {
    policy.schedule =
        text == "exact" ? examples::NamedSchedule{text, recycled::AlwaysFull{}} : examples::parse_schedule(shown, text);
  } else if (name == "capacity") {
    const bool share = text.starts_with("1/");
    policy.capacity = share ? Capacity{0, count(text.substr(2), 1)} : Capacity{count(text, 1), 0};
  } else if (name == "from") {
    policy.from = count(text, 0);
  } else if (name == "sequences") {
    policy.sequences = count(text, 1);
  } else {
    throw std::invalid_argument(shown + ": expected schedule, capacity, from or sequences");
  }
}

/// As in the line at start: "fixed-stride:10, capacity 1/8, from 1024 positions".
inline std::string describe(const Policy& policy) {
  if (!policy.recycles()) return "exact";
  return policy.schedule.name + ", capacity " +
         (policy.capacity.rows > 0 ? std::to_string(policy.capacity.rows) + " rows"
                                   : "1/" + std::to_string(policy.capacity.share) + " of the length") +
         ", from " + std::to_string(policy.from) + " positions on";
}

}  // namespace plugin
