// How far a long run has got.
#pragma once

#include <unistd.h>

#include <cstdio>
#include <string>

namespace host {

/// A bar below what the program prints, if stderr is a terminal.
class Progress {
 public:
  explicit Progress(std::size_t total) : total_(total), shown_(isatty(STDERR_FILENO) != 0) {}
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress() { clear(); }

  /// One of `total` is done.
  void advance() {
    const std::size_t percent = ++done_ * 100 / total_;
    if (!shown_ || percent == percent_) return;
    percent_ = percent;
    std::fprintf(stderr, "\r[%-50s] %3zu %%", std::string(percent / 2, '=').c_str(), percent);
  }
  /// Before anything else is printed.
  void clear() {
    if (shown_) std::fputs("\r\33[K", stderr);
    percent_ = 101;
  }

 private:
  std::size_t total_, done_ = 0;
  std::size_t percent_ = 101;  // shown
  bool shown_;
};

}  // namespace host
