// Reads NumPy's .npy files as far as a trace needs them: float16 or float32, C order, three dimensions.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <recycled/types/scalar.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace replay {

using recycled::index_t;

static_assert(std::endian::native == std::endian::little, "traces are little-endian and read as they are");

/// A dense array, the last dimension contiguous.
struct Tensor {
  std::array<index_t, 3> shape{};
  std::vector<float> values;
};

namespace npy {

[[noreturn]] inline void fail(const std::string& path, std::string_view name, std::string_view value,
                              std::string_view expectation) {
  throw std::runtime_error(path + ": " + std::string(name) + " = " + std::string(value.substr(0, 80)) + ", expected " +
                           std::string(expectation));
}

inline std::string contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + ": can't be opened (" + std::strerror(errno) + ")");
  if (std::filesystem::is_directory(path)) throw std::runtime_error(path + ": can't be read (Is a directory)");
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

/// The header is a Python dictionary after a magic string, the version and the header's own length; the data follow.
struct Parts {
  std::string_view header;
  std::string_view data;
};

inline Parts split(const std::string& path, std::string_view bytes) {
  constexpr std::string_view magic = "\x93NUMPY";
  if (!bytes.starts_with(magic)) fail(path, "magic", "another file type", "\\x93NUMPY: a .npy file");
  const auto byte = [&](std::size_t i) { return std::size_t{static_cast<unsigned char>(bytes[i])}; };
  if (bytes.size() < 12) fail(path, "file size", std::to_string(bytes.size()), "at least 12 bytes");
  const std::size_t version = byte(6);
  if (version < 1 || version > 3) fail(path, "version", std::to_string(version), "1, 2 or 3");
  const std::size_t begin = version == 1 ? 10 : 12;
  std::size_t length = byte(8) + (byte(9) << 8);
  if (version > 1) length += (byte(10) << 16) + (byte(11) << 24);
  if (length > bytes.size() - begin) {
    fail(path, "header length", std::to_string(length),
         "at most " + std::to_string(bytes.size() - begin) + ", what the file has left");
  }
  return {bytes.substr(begin, length), bytes.substr(begin + length)};
}

/// The text of `key`'s value in the header, up to the character `end`.
inline std::string_view value_of(const std::string& path, std::string_view header, std::string_view key, char end) {
  const std::string quoted = std::string("'").append(key).append("':");
  const std::size_t found = header.find(quoted);
  if (found == std::string_view::npos) fail(path, "header", header, "an entry " + quoted);
  header.remove_prefix(found + quoted.size());
  header.remove_prefix(std::min(header.find_first_not_of(' '), header.size()));
  return header.substr(0, std::min(header.find(end), header.size()));
}

/// "(4608, 9, 64": three numbers from 1 on, whose product is at most `most`.
inline std::array<index_t, 3> parse_shape(const std::string& path, std::string_view text, index_t most) {
  const auto bad = [&](std::string_view expectation) { fail(path, "shape", std::string(text) + ")", expectation); };
  std::array<index_t, 3> shape{};
  index_t count = 1;
  const char* at = text.data();
  const char* const end = text.data() + text.size();
  for (std::size_t i = 0; i < shape.size(); ++i) {
    const char before = i == 0 ? '(' : ',';
    while (at != end && *at == ' ') ++at;
    if (at == end || *at != before) bad("three dimensions (token, head, dim)");
    for (++at; at != end && *at == ' ';) ++at;
    const auto [next, error] = std::from_chars(at, end, shape[i]);
    if (error != std::errc{} || shape[i] < 1) bad("three dimensions of at least 1");
    if (shape[i] > most / count) bad("at most the " + std::to_string(most) + " values that the file has room for");
    count *= shape[i];
    at = next;
  }
  if (std::string_view(at, end).find_first_not_of(", ") != std::string_view::npos) bad("three dimensions, no more");
  return shape;
}

template <class T>
std::vector<float> to_floats(std::string_view data) {
  std::vector<T> stored(data.size() / sizeof(T));
  std::memcpy(stored.data(), data.data(), data.size());
  std::vector<float> values(stored.size());
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(stored[i]);
  return values;
}

}  // namespace npy

/// Throws std::runtime_error that names the file, what is wrong and what was expected. Sizes in the header are checked
/// against the file before memory is taken.
inline Tensor read_npy(const std::string& path) {
  const std::string bytes = npy::contents(path);
  const auto [header, data] = npy::split(path, bytes);
  const std::string_view type = npy::value_of(path, header, "descr", ',');
  if (type != "'<f2'" && type != "'<f4'") npy::fail(path, "descr", type, "'<f2' or '<f4': little-endian floats");
  const std::string_view order = npy::value_of(path, header, "fortran_order", ',');
  if (order != "False") npy::fail(path, "fortran_order", order, "False: C order (numpy.ascontiguousarray)");
  const std::size_t size = type == "'<f2'" ? 2 : 4;
  Tensor tensor;
  tensor.shape =
      npy::parse_shape(path, npy::value_of(path, header, "shape", ')'), static_cast<index_t>(data.size() / size));
  const auto [a, b, c] = tensor.shape;
  const std::size_t expected = static_cast<std::size_t>(a * b * c) * size;
  if (data.size() != expected) {
    npy::fail(path, "bytes of data", std::to_string(data.size()), std::to_string(expected) + " for the header's shape");
  }
  tensor.values = size == 2 ? npy::to_floats<recycled::half>(data) : npy::to_floats<float>(data);
  return tensor;
}

}  // namespace replay
