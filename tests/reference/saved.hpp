// What an object writes when it is saved.
#pragma once

#include <sstream>
#include <string>
#include <utility>

namespace reference {

template <class Saved>
std::string saved(const Saved& one) {
  std::ostringstream stream;
  one.save(stream);
  return std::move(stream).str();
}

}  // namespace reference
