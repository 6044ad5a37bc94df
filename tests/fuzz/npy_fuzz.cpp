// Any bytes as a .npy file: read, or refused by an error that names the file.
#include <sys/mman.h>
#include <unistd.h>

#include "../examples/replay/npy.hpp"
#include "fuzz/fuzz.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const int file = ::memfd_create("npy", 0);
  static const std::string path = "/proc/self/fd/" + std::to_string(file);
  fuzz::check(::ftruncate(file, 0) == 0 && ::pwrite(file, data, size, 0) == static_cast<ssize_t>(size),
              "a file to read");
  try {
    const replay::Tensor tensor = replay::read_npy(path);
    const auto [a, b, c] = tensor.shape;
    fuzz::check(static_cast<std::size_t>(a * b * c) == tensor.values.size(), "as many values as the shape says");
  } catch (const std::runtime_error& error) {
    fuzz::check(std::string(error.what()).starts_with(path), "an error names the file");
  }
  return 0;
}
