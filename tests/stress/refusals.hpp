// Wrong calls: each is refused by the message that its argument's documentation promises, and changes nothing.
#pragma once

#include <gtest/gtest.h>

#include <limits>
#include <recycled/types/config.hpp>
#include <set>
#include <sstream>
#include <string>

#include "reference/messages.hpp"
#include "reference/saved.hpp"

namespace stress {

using recycled::index_t;
using reference::saved;

inline constexpr index_t lowest = std::numeric_limits<index_t>::min(), largest = std::numeric_limits<index_t>::max();
inline constexpr index_t huge = index_t{1} << 62;
inline constexpr float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();

class Refusals {
 public:
  /// `call` is refused: "recycled: <argument> = <value>, expected ...<expectation>...".
  template <class Value, class Call>
  void expect(const std::string& entry_point, const std::string& argument, const Value& value,
              const std::string& expectation, const Call& call) {
    std::ostringstream begins;
    begins << "recycled: " << argument << " = " << value << ", expected ";
    const std::string message = message_of(call);
    EXPECT_EQ(message.substr(0, begins.str().size()), begins.str()) << entry_point;
    EXPECT_NE(message.find(expectation, std::min(message.size(), begins.str().size())), std::string::npos)
        << entry_point << ": " << message;
    ++calls;
    entry_points.insert(entry_point);
    arguments.insert(entry_point + " " + argument);
  }
  /// The same for each of some values, which `call` gets.
  template <class Value, class Call>
  void expect_each(const std::string& entry_point, const std::string& argument, std::initializer_list<Value> values,
                   const std::string& expectation, const Call& call) {
    for (const Value& value : values) expect(entry_point, argument, value, expectation, [&] { call(value); });
  }

  std::string figure() const {
    return std::to_string(calls) + " wrong calls: " + std::to_string(arguments.size()) + " arguments of " +
           std::to_string(entry_points.size()) + " entry points refused by name";
  }

  long calls = 0;
  std::set<std::string> entry_points, arguments;
};

}  // namespace stress
