// The results of a replay as a table to read, as JSON, and as one line a step for the picture.
#pragma once

#include <iomanip>
#include <ostream>
#include <span>

#include "../output_file.hpp"
#include "results.hpp"

namespace replay {

/// A line for every result; speed-ups are over the first one.
inline void print_table(std::ostream& stream, const std::vector<Result>& results) {
  std::size_t width = 6;
  for (const Result& result : results) width = std::max(width, result.policy.size());
  const auto name = [&](const std::string& text) {
    stream << std::left << std::setw(static_cast<int>(width)) << text << std::right;
  };
  const auto number = [&](int columns, int digits, double value, std::string_view unit = "") {
    stream << std::setw(columns) << std::fixed << std::setprecision(digits) << value << unit;
  };
  name("policy");
  stream << "  full steps  sketched  rows read     bytes    error  covered  us/token  speed-up\n";
  for (const Result& result : results) {
    name(result.policy);
    stream << std::setw(12) << result.full_steps << std::setw(10) << result.sketched_steps << std::setw(11)
           << result.rows;
    number(8, 1, 100 * result.bytes_share, " %");
    number(9, 5, result.error);
    number(9, 5, result.covered);
    number(10, 1, result.microseconds);
    number(9, 2, results.front().microseconds / result.microseconds, "x");
    stream << '\n';
  }
}

/// An array of one object a result. What is not finite is null.
inline void write_json(std::ostream& stream, std::span<const Result> results) {
  stream << '[' << std::setprecision(9) << std::defaultfloat;
  std::string_view separator = "\n";
  for (const Result& result : results) {
    const auto field = [&](std::string_view name, double value) {
      stream << ", \"" << name << "\": " << examples::JsonNumber{value};
    };
    stream << separator << "  {\"policy\": \"" << result.policy << "\", \"full_steps\": " << result.full_steps
           << ", \"sketched_steps\": " << result.sketched_steps << ", \"rows\": " << result.rows;
    field("bytes_share", result.bytes_share);
    field("error", result.error);
    field("covered", result.covered);
    field("microseconds", result.microseconds);
    stream << '}';
    separator = ",\n";
  }
  stream << "\n]\n";
}

/// CSV: a row for every policy, full attention's too, and decode step.
inline void write_steps(std::ostream& stream, const std::vector<Result>& results) {
  stream << "policy,step,full_heads,error,microseconds\n" << std::setprecision(6) << std::defaultfloat;
  for (const Result& result : results) {
    for (std::size_t i = 0; i < result.steps.size(); ++i) {
      const Step& step = result.steps[i];
      stream << result.policy << ',' << i + 1 << ',' << step.full_heads << ',' << step.error << ',' << step.microseconds
             << '\n';
    }
  }
}

}  // namespace replay
