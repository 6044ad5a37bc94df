// The schedules of a replay.
#pragma once

#include "../schedules.hpp"

namespace replay {

using examples::AnySchedule;
using examples::NamedSchedule;
using examples::parse_number;
using recycled::index_t;

/// Schedules separated by commas. Throws std::invalid_argument for one that can't be.
inline std::vector<NamedSchedule> parse_schedules(const std::string& text) {
  std::vector<NamedSchedule> schedules;
  for (const std::string& part : examples::split(text, ',')) {
    schedules.push_back(examples::parse_schedule("--schedule", part));
  }
  return schedules;
}

}  // namespace replay
