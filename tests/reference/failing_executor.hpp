// An executor that is cut short.
#pragma once

#include <recycled/types/config.hpp>
#include <stdexcept>

namespace reference {

/// Serial, but the `fails_at`-th parallel region throws when half of its tasks are done.
struct FailingExecutor {
  int fails_at;
  int regions = 0;
  template <class F>
  void operator()(recycled::index_t n, const F& f) {
    const bool fails = ++regions == fails_at;
    for (recycled::index_t i = 0; i < (fails ? n / 2 : n); ++i) f(i);
    if (fails) throw std::runtime_error("cancelled");
  }
};

}  // namespace reference
