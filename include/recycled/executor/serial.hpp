// Who runs the pieces of a step.
#pragma once

#include <concepts>

#include "recycled/types/config.hpp"

namespace recycled::inline RECYCLED_ABI {

/// An executor is anything that can be called as executor(n, f), calls f(0), ..., f(n - 1) once each, in any order and
/// on any threads, and returns when all have returned; n is at least 1. A step calls it twice: with n <= max(64, 16
/// kv_heads) for the attention, or n <= max(16, 64 / kv_heads) where it reads rows that lie as [position, head, dim];
/// then with n = kv_heads, where a sketch is read or made anew once more for each. The choice of a first set does so
/// for each query of the observation window. Neighbouring pieces read neighbouring memory. A host's own parallel-for
/// fits in one line:
///
///     attention.step(query, kv, out, [&](auto n, auto&& f) { host.parallel_for(0, n, f); });
template <class E>
concept Executor = requires(E& executor, index_t n, void (*f)(index_t)) {
  executor(n, f);
};

/// Runs everything on the calling thread: the default. Any number of threads may use one.
struct Serial {
  template <class F>
  void operator()(index_t n, const F& f) const {
    for (index_t i = 0; i < n; ++i) f(i);
  }
};

}  // namespace recycled::inline RECYCLED_ABI
