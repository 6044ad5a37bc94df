// A file that a program leaves its results in, and numbers in it.
#pragma once

#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <string>

namespace examples {

/// A file to write, tried before the work starts: a wrong path should not cost a run. No name: no file.
class OutputFile {
 public:
  OutputFile() = default;
  /// Throws std::runtime_error if it can't be written, as write() does.
  explicit OutputFile(std::string name) : name_(std::move(name)) {
    if (!name_.empty()) check(std::ofstream(name_, std::ios::app));
  }
  /// Calls write(stream) with the file emptied.
  template <class Write>
  void write(const Write& write) const {
    if (name_.empty()) return;
    std::ofstream stream(name_);
    write(stream);
    stream.close();
    check(stream);
  }

 private:
  void check(const std::ofstream& stream) const {
    if (!stream) throw std::runtime_error(name_ + ": can't be written (" + std::strerror(errno) + ")");
  }

  std::string name_;
};

/// A number in JSON, which has no word for what is not finite: that becomes null.
struct JsonNumber {
  double value;
};
inline std::ostream& operator<<(std::ostream& stream, JsonNumber number) {
  return std::isfinite(number.value) ? stream << number.value : stream << "null";
}

}  // namespace examples
