// Shows on stderr how far the work has come: a bar on a terminal, a line now and then elsewhere.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <recycled/types/config.hpp>
#include <string>

namespace replay {

using recycled::index_t;

class ProgressBar {
 public:
  ProgressBar() = default;
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  ~ProgressBar() {
    if (terminal_ && shown_ >= 0) std::fputs("\r\033[K", stderr);  // the table takes its place
  }

  void operator()(index_t done, index_t total) {
    const index_t percent = 100 * done / total;
    if (percent == shown_) return;
    shown_ = percent;
    if (terminal_) {
      std::string bar(width, '.');
      std::fill_n(bar.begin(), percent * width / 100, '#');
      std::fprintf(stderr, "\rreplaying [%s] %3lld %%", bar.c_str(), static_cast<long long>(percent));
    } else if (percent % 25 == 0) {
      std::fprintf(stderr, "replaying: %lld %%\n", static_cast<long long>(percent));
    }
  }

 private:
  static constexpr int width = 40;
  bool terminal_ = isatty(STDERR_FILENO) == 1;
  index_t shown_ = -1;
};

}  // namespace replay
