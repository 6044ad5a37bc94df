// What an object writes when it is saved.
#pragma once

#include <cstring>
#include <recycled/types/archive.hpp>
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

/// With a last checksum that is right for what was changed.
inline std::string signed_again(std::string state) {
  recycled::detail::Checksum sum;
  sum.add(state.data(), state.size() - sizeof(std::uint64_t));
  const std::uint64_t value = sum.value();
  std::memcpy(state.data() + state.size() - sizeof value, &value, sizeof value);
  return state;
}

}  // namespace reference
