// One way to say no: std::invalid_argument that names the argument, its value and what was expected.
#pragma once

#include <cmath>
#include <limits>
#include <sstream>
#include <string>
#include <string_view>

#include "recycled/types/config.hpp"

#if defined(RECYCLED_HAS_EXCEPTIONS)
#include <stdexcept>
#else
#include <cstdio>
#include <cstdlib>
#ifndef RECYCLED_ERROR_HANDLER
/// Without exceptions this receives the message (const char*) before the program aborts. Define it before the include
/// to log in your own way; if it returns, std::abort follows.
#define RECYCLED_ERROR_HANDLER(message) std::fprintf(stderr, "%s\n", message)
#endif
#endif

namespace recycled::inline RECYCLED_ABI::detail {

[[noreturn]] inline void fail(const std::string& message) {
#if defined(RECYCLED_HAS_EXCEPTIONS)
  throw std::invalid_argument(message);
#else
  RECYCLED_ERROR_HANDLER(message.c_str());
  std::abort();
#endif
}

// Out of line and cold, so that a check costs its caller one compare and one branch.
template <class Value>
[[noreturn, gnu::noinline, gnu::cold]] void fail_argument(std::string_view argument, const Value& value,
                                                          std::string_view expectation) {
  std::ostringstream message;
  message << "recycled: " << argument << " = " << value << ", expected " << expectation;
  fail(message.str());
}

/// The parts, one after the other. (Not by operator+: GCC 12 warns of overlapping memory where it inlines that, in the
/// host's build.)
template <class... Parts>
[[gnu::noinline, gnu::cold]] std::string text(const Parts&... parts) {
  std::ostringstream whole;
  (whole << ... << parts);
  return whole.str();
}

/// Fails with "recycled: <argument> = <value>, expected <expectation>" unless `ok`. An expectation that has to be put
/// together is a function that does so: a step that succeeds must not allocate for the message of one that fails.
template <class Value, class Expectation>
void require(bool ok, std::string_view argument, const Value& value, const Expectation& expectation) {
  if (!ok) [[unlikely]] {
    if constexpr (requires { expectation(); }) {
      fail_argument(argument, value, expectation());
    } else {
      fail_argument(argument, value, expectation);
    }
  }
}

/// a * b for sizes, checked: `what` names the product in the error.
inline index_t checked_product(index_t a, index_t b, std::string_view what) {
  if (a < 0 || b < 0 || (b != 0 && a > std::numeric_limits<index_t>::max() / b)) [[unlikely]] {
    fail_argument(what, text(a, " * ", b), "a product below 2^63");
  }
  return a * b;
}

/// Asks a policy to check its own parameters, if it can.
template <class Policy>
void validate(const Policy& policy) {
  if constexpr (requires { policy.validate(); }) policy.validate();
}

}  // namespace recycled::inline RECYCLED_ABI::detail
