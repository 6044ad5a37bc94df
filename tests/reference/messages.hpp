// What a failed check says.
#pragma once

#include <gtest/gtest.h>

#include <stdexcept>
#include <string>

/// The message of the Exception that `f` throws; empty if it throws nothing.
template <class Exception = std::invalid_argument, class F>
std::string message_of(const F& f) {
  try {
    f();
  } catch (const Exception& error) {
    return error.what();
  }
  return "";
}

/// "recycled: <argument> = <value>, expected <expectation>".
inline std::string says(const std::string& argument, const std::string& value, const std::string& expectation) {
  return "recycled: " + argument + " = " + value + ", expected " + expectation;
}
