// An executor that gives each piece a thread of its own.
#pragma once

#include <recycled/types/config.hpp>
#include <thread>
#include <vector>

namespace reference {

struct OwnThreads {
  template <class F>
  void operator()(recycled::index_t n, const F& f) const {
    std::vector<std::thread> all;
    for (recycled::index_t i = 0; i < n; ++i) all.emplace_back(f, i);
    for (std::thread& thread : all) thread.join();
  }
};

}  // namespace reference
