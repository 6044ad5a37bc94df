// The schedules of a replay.
#pragma once

#include "../schedules.hpp"

namespace replay {

using examples::AnySchedule;
using examples::NamedSchedule;
using examples::parse_number;
using recycled::index_t;

/// A schedule, and the K that it works with if that is not the same for all.
struct Policy : NamedSchedule {
  index_t capacity = 0;  ///< 0: that of the replay
};

/// Schedules separated by commas, each with @K at its end where it has a K of its own. Throws std::invalid_argument for
/// one that can't be.
inline std::vector<Policy> parse_schedules(const std::string& text) {
  std::vector<Policy> schedules;
  for (const std::string& part : examples::split(text, ',')) {
    const std::size_t at = part.find('@');
    Policy policy{examples::parse_schedule("--schedule", part.substr(0, at))};
    if (at != std::string::npos) {
      policy.name = part;
      policy.capacity = parse_number<index_t>("--schedule = " + part + ": capacity", part.substr(at + 1));
      if (policy.capacity < 1 || policy.capacity > recycled::detail::most_positions) {
        throw std::invalid_argument("--schedule = " + part + ": expected a capacity of 1 to 2^40 behind the @");
      }
    }
    schedules.push_back(std::move(policy));
  }
  return schedules;
}

}  // namespace replay
