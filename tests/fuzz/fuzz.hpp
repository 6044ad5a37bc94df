// What the fuzz targets share: numbers out of bytes, and checks that stop the fuzzer.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "compiled/kernels.hpp"

namespace fuzz {

using recycled::index_t;

inline void check(bool holds, const char* promise) {
  if (holds) return;
  std::fprintf(stderr, "broken: %s\n", promise);
  std::abort();
}

/// Zeros once the bytes have run out.
class Bytes {
 public:
  Bytes(const std::uint8_t* data, std::size_t size) : data_(data), left_(size) {}

  bool empty() const { return left_ == 0; }
  template <class N>
  N raw() {
    N value{};
    const std::size_t size = left_ < sizeof(N) ? left_ : sizeof(N);
    std::memcpy(&value, data_, size);
    data_ += size;
    left_ -= size;
    return value;
  }
  index_t between(index_t low, index_t high) { return low + raw<std::uint8_t>() % (high - low + 1); }
  /// The same from the end.
  index_t last(index_t low, index_t high) {
    const std::uint8_t byte = left_ == 0 ? std::uint8_t{0} : data_[--left_];
    return low + byte % (high - low + 1);
  }
  /// Small numbers most of the time, any bits now and then.
  float number() {
    const auto byte = raw<std::int8_t>();
    return byte == -128 ? raw<float>() : static_cast<float>(byte) / 32;
  }
  std::vector<float> numbers(index_t count) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) value = number();
    return values;
  }

 private:
  const std::uint8_t* data_;
  std::size_t left_;
};

}  // namespace fuzz
