// What a failed check says.
#pragma once

#include <gtest/gtest.h>

#include <sstream>
#include <stdexcept>
#include <string>

#if !defined(__cpp_exceptions)
#include "reference/no_exceptions.hpp"
#endif

namespace reference {

/// One in how many of tens of thousands of cases is tried: without exceptions each takes a process of its own.
#if defined(__cpp_exceptions)
inline constexpr std::size_t of_many = 1;
#else
inline constexpr std::size_t of_many = 61;
#endif

}  // namespace reference

/// The message of the Exception that `f` throws; empty if it throws nothing.
template <class Exception = std::invalid_argument, class F>
std::string message_of(const F& f) {
#if defined(__cpp_exceptions)
  try {
    f();
  } catch (const Exception& error) {
    return error.what();
  }
  return "";
#else
  return reference::refusal_of(f);
#endif
}

/// Of loading `state`.
template <class Loaded>
std::string error_of(Loaded& into, const std::string& state) {
  std::istringstream stream(state);
  return message_of([&] { into.load(stream); });
}

/// "recycled: <argument> = <value>, expected <expectation>".
inline std::string says(const std::string& argument, const std::string& value, const std::string& expectation) {
  return "recycled: " + argument + " = " + value + ", expected " + expectation;
}
